"""A weighted mean over many batches, on one process or several."""

from typing import Any, Optional

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["WeightedMean"]


class WeightedMean(Metric):
    """``sum(value * weight) / sum(weight)``; torchmetrics' own mean ignores NaN, which would hide a diverging loss."""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, values: Tensor, weight: Optional[Any] = None) -> None:
        """Add values of any shape, all with the same weight (by default 1 each)."""
        weight = torch.ones((), device=values.device) if weight is None else weight
        self.total += (values * weight).sum()
        self.weight += weight * values.numel()

    def so_far(self, world_size: int = 1) -> Tensor:
        """``[2]``: what `go_on` takes, the sum of all processes, each of which must call this."""
        both = torch.stack([self.total, self.weight])
        if world_size > 1:
            torch.distributed.all_reduce(both)
        return both

    def go_on(self, both: Tensor) -> None:
        """Continue from the sums of another."""
        self.total, self.weight = both.to(self.total).clone().unbind()

    def compute(self) -> Tensor:
        return self.total / self.weight

"""Scales and missing values of raw features, as formulas for eager code and graphs: ``[..., T, D]`` in and out."""

from typing import Optional

import torch
from torch import Tensor

from myfla.utils.tracing import tracing

__all__ = ["fill_forward", "own_scale", "standardise", "usable_std"]


def usable_std(std: Tensor, mean: Tensor) -> Tensor:
    """The standard deviation, or 1 for a channel that is constant up to rounding.

    Example:
        >>> usable_std(torch.tensor([2.0, 0.0, 1e-9]), torch.tensor([1.0, 1.0, 1e9])).tolist()
        [2.0, 1.0, 1.0]
    """
    return torch.where(std > 1e-12 * mean.abs(), std, torch.ones_like(std))


def own_scale(x: Tensor) -> Tensor:
    """From ``[..., T, D]`` to ``[..., T, 2 D]``: channels with mean 0 and standard deviation 1, and their old scale.

    The second half is ``log10(std + 1e-6) / 3``, the same at all steps. Missing values (NaN) are ignored and stay NaN.

    Example:
        >>> [[round(number, 2) for number in step] for step in own_scale(torch.tensor([[0.0], [20.0]])).tolist()]
        [[-1.0, 0.33], [1.0, 0.33]]
    """
    known = ~x.isnan()
    count = known.sum(-2, keepdim=True)
    zero = torch.zeros_like(x)
    mean = torch.where(known, x, zero).sum(-2, keepdim=True) / count  # NaN for a channel without values, which it stays
    std = (torch.where(known, x - mean, zero).square().sum(-2, keepdim=True) / count).sqrt()
    scaled = (x - mean) / usable_std(std, mean)
    return torch.cat([scaled, (torch.log10(std + 1e-6) / 3).expand_as(x)], -1)


def fill_forward(x: Tensor) -> Tensor:
    """``[..., T, D]`` with every NaN replaced by the last value before it in its channel, or the first one after it.

    A channel without any value keeps its NaN.

    Example:
        >>> nan = float("nan")
        >>> fill_forward(torch.tensor([[nan], [1.0], [nan], [2.0]])).flatten().tolist()
        [1.0, 1.0, 1.0, 2.0]
    """
    known = ~x.isnan()
    if not tracing() and not x.is_meta and bool(known.all()):
        return x
    steps = torch.arange(x.shape[-2], device=x.device)[:, None].expand_as(x)
    count = known.long().cumsum(-2)  # of values so far; the step of the n-th value is noted in row n
    table = torch.cat([torch.zeros_like(steps[..., :1, :]), torch.zeros_like(steps)], -2)
    table = table.scatter(-2, torch.where(known, count, torch.zeros_like(count)), steps)
    return x.gather(-2, table.gather(-2, count.clamp(min=1)))


def standardise(x: Tensor, mean: Tensor, std: Tensor, missing: Optional[str] = None) -> Tensor:
    """``(x - mean) / std``; without ``missing="error"`` a value that is still missing becomes the mean, 0.

    Example:
        >>> standardise(torch.tensor([[3.0], [float("nan")]]), torch.tensor([1.0]), torch.tensor([2.0])).tolist()
        [[1.0], [0.0]]
    """
    x = (x - mean) / std
    return x if missing == "error" else torch.where(x.isnan(), torch.zeros_like(x), x)

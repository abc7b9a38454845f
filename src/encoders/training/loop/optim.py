"""Weight decay, and the schedule of the learning rate."""

import math
from typing import Any, Dict, List

from torch import nn

__all__ = ["parameter_groups", "rate_factor"]


def parameter_groups(module: nn.Module, weight_decay: float) -> List[Dict[str, Any]]:
    """Optimizer groups: weight decay for matrices only.

    Biases, norm weights and other vectors, embeddings, and every parameter that its layer marks with
    ``_no_weight_decay`` (the decay rates ``A_log`` and ``dt_bias`` of GatedDeltaNet) are not decayed.

    Args:
        module: whose trainable parameters are grouped.
        weight_decay: for the group that is decayed.

    Returns:
        two groups, decayed and not, in the order of ``module.named_parameters()``.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))}
    decayed: List[nn.Parameter] = []
    free: List[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.ndim < 2 or id(parameter) in embeddings
        (free if vector or getattr(parameter, "_no_weight_decay", False) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def rate_factor(step: int, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """Factor of the learning rate at ``step``: a linear rise, then, by ``schedule``, a fall to zero along a half cosine
    or a line, or a constant.

    Example:
        >>> [round(rate_factor(step, 2, 6), 3) for step in range(7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
        >>> [rate_factor(step, 2, 6, "linear") for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

"""Initial values of the parameters of a data-dependent decay, as in Mamba-2."""

import math
from typing import Tuple

import torch

__all__ = ["reset_A_log", "reset_decay", "reset_dt_bias"]


def reset_decay(
    A_log: torch.Tensor, dt_bias: torch.Tensor, A_range: Tuple[float, float] = (0.0, 16.0),
    dt_range: Tuple[float, float] = (0.001, 0.1), dt_floor: float = 1e-4,
) -> None:  # fmt: skip
    """Draw the parameters of ``g = -exp(A_log) softplus(a + dt_bias)``, and exclude both from weight decay.

    Args:
        A_log: any shape: the logarithm of a uniform draw from ``A_range``; of zeros where the range is (1, 1).
        dt_bias: any shape: time steps log-uniform in ``dt_range``, at least ``dt_floor``, through the inverse of
            softplus.
        A_range, dt_range, dt_floor: see above.
    """
    reset_A_log(A_log, A_range)
    reset_dt_bias(dt_bias, dt_range, dt_floor)


def reset_A_log(A_log: torch.Tensor, A_range: Tuple[float, float]) -> None:
    """Draw ``A_log`` of `reset_decay`."""
    setattr(A_log, "_no_weight_decay", True)
    if A_log.is_meta:  # nothing to draw; trying would load torch's compiler, which takes seconds
        return
    with torch.no_grad():
        if A_range[0] == A_range[1]:
            A_log.fill_(math.log(A_range[0]))
        else:
            A_log.copy_(torch.empty(A_log.shape, device=A_log.device, dtype=torch.float32).uniform_(*A_range).log())


def reset_dt_bias(dt_bias: torch.Tensor, dt_range: Tuple[float, float], dt_floor: float) -> None:
    """Draw ``dt_bias`` of `reset_decay`."""
    setattr(dt_bias, "_no_weight_decay", True)
    if dt_bias.is_meta:
        return
    low, high = math.log(dt_range[0]), math.log(dt_range[1])
    with torch.no_grad():
        step = (torch.rand(dt_bias.shape, device=dt_bias.device) * (high - low) + low).exp().clamp(min=dt_floor)
        dt_bias.copy_(step + torch.log(-torch.expm1(-step)))

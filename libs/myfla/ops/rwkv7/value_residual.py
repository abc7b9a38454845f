"""The value residual: every layer's values, mixed with those of the first."""

from typing import Tuple

import torch

from myfla.utils.autograd import hand_differentiated
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["mix_values"]


def mix_values(v: torch.Tensor, v_first: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``v + (v_first - v) sigmoid(gate)``, computed in float32 (float64 for float64 input) and rounded once.

    Args:
        v, v_first, gate: ``[B, T, D]``; gate before its sigmoid.

    Returns:
        ``[B, T, D]`` in v's dtype.

    Example:
        >>> mix_values(torch.zeros(1), torch.full((1,), 4.0), torch.zeros(1))
        tensor([2.])
    """
    return _mix_values(v, v_first, gate)


def _forward(v: torch.Tensor, v_first: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    dtype = accumulation_dtype(v)
    wide, share = v.to(dtype), torch.sigmoid(gate.to(dtype))
    return torch.addcmul(wide, v_first.to(dtype) - wide, share).to(v.dtype)


def _backward(
    grad: torch.Tensor, v: torch.Tensor, v_first: torch.Tensor, gate: torch.Tensor
) -> Tuple[torch.Tensor, ...]:
    dtype = accumulation_dtype(v)
    wide, part = grad.to(dtype), torch.sigmoid(gate.to(dtype))
    to_first = wide * part
    difference = (v_first.to(dtype) - v.to(dtype)).mul_(to_first)
    d_gate = difference.addcmul_(difference, part, value=-1)
    return (wide - to_first).to(v.dtype), to_first.to(v_first.dtype), d_gate.to(gate.dtype)


_mix_values = hand_differentiated(_forward, _backward)

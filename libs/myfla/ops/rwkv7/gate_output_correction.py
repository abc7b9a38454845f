"""The bonus of the current token, and the output gate."""

from typing import Tuple

import torch

from myfla.utils.autograd import hand_differentiated
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = [
    "gate_output_correction",
    "gate_output_correction_backward",
    "gate_output_correction_backward_ref",
    "gate_output_correction_backward_triton",
    "gate_output_correction_ref",
]

Grads = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def gate_output_correction(
    o: torch.Tensor,
    r: torch.Tensor,
    k: torch.Tensor,
    r_k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
) -> torch.Tensor:
    """``(o + (sum_d r k r_k) v) g``: how much the token reads of what it just wrote, then the gate.

    Computed in float32 (float64 for float64 input) and rounded once. Key and value sizes may differ.

    Args:
        o: ``[B, T, H * V]`` normalised output of the recurrence.
        r, k: ``[B, T, H, K]``.
        r_k: ``[H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H * V]`` gate.

    Returns:
        ``[B, T, H * V]`` in o's dtype.

    Raises:
        ValueError: ``r_k`` is not ``[H, K]``.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> gate_output_correction(x[0], x, x, x[0, 0], x, 3 * x[0])
        tensor([[[6.]]])
    """
    if r_k.shape != r.shape[-2:]:
        raise value_error("gate_output_correction", "r_k", f"must have shape [H, K] = {tuple(r.shape[-2:])}",
                          tuple(r_k.shape))
    return _correct_and_gate(o, r, k, r_k, v, g)


def gate_output_correction_ref(
    o: torch.Tensor, r: torch.Tensor, k: torch.Tensor, r_k: torch.Tensor, v: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    """`gate_output_correction` as plain operations, in the input's dtype: the reference.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> gate_output_correction_ref(x[0], x, x, x[0, 0], x, 3 * x[0])
        tensor([[[6.]]])
    """
    return (o + ((r * k * r_k).sum(-1, keepdim=True) * v).reshape(o.shape)) * g


def gate_output_correction_backward_ref(
    grad_output: torch.Tensor, o: torch.Tensor, r: torch.Tensor, k: torch.Tensor, r_k: torch.Tensor,
    v: torch.Tensor, g: torch.Tensor,
) -> Grads:
    """Gradients of `gate_output_correction_ref`, found by autograd; in the order of its arguments.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> gate_output_correction_backward_ref(x[0], x[0], x, x, x[0, 0], x, 3 * x[0])[5]
        tensor([[[2.]]])
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (o, r, k, r_k, v, g)]
        do, dr, dk, dr_k, dv, dg = torch.autograd.grad(gate_output_correction_ref(*inputs), inputs, grad_output)
    return do, dr, dk, dr_k, dv, dg


def gate_output_correction_backward(
    grad_output: torch.Tensor, o: torch.Tensor, r: torch.Tensor, k: torch.Tensor, r_k: torch.Tensor,
    v: torch.Tensor, g: torch.Tensor,
) -> Grads:
    """Gradients of `gate_output_correction`, by hand; in the order of its arguments, each in its dtype.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> gate_output_correction_backward(x[0], x[0], x, x, x[0, 0], x, 3 * x[0])[5]
        tensor([[[2.]]])
    """
    dtype = accumulation_dtype(o)
    grad, o32, r32, k32, w32, v32, g32 = (x.to(dtype) for x in (grad_output, o, r, k, r_k, v, g))
    own = r32 * k32
    bonus = _head_sum(own, w32)
    d_sum = grad * g32
    d_gate = grad * torch.addcmul(o32, bonus.expand_as(v32).reshape(o.shape), v32.reshape(o.shape))
    heads = d_sum.view(v.shape)
    d_bonus = torch.matmul(heads.unsqueeze(-2), v32.unsqueeze(-1)).squeeze(-1)
    weighted = d_bonus * w32
    d_r, d_k, d_v = weighted * k32, weighted * r32, heads * bonus
    d_w = own.mul_(d_bonus).sum((0, 1))
    return (d_sum.to(o.dtype), d_r.to(r.dtype), d_k.to(k.dtype), d_w.to(r_k.dtype), d_v.to(v.dtype), d_gate.to(g.dtype))


gate_output_correction_backward_triton = gate_output_correction_backward
"""The official name of the hand-written backward."""


def _head_sum(own: torch.Tensor, r_k: torch.Tensor) -> torch.Tensor:
    """``sum_d own[b, t, h, d] r_k[h, d]`` as ``[B, T, H, 1]``."""
    return (own * r_k).sum(-1, keepdim=True)


def _formula(
    o: torch.Tensor, r: torch.Tensor, k: torch.Tensor, r_k: torch.Tensor, v: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    """`_forward` in plain operations."""
    kind = accumulation_dtype(o)
    return gate_output_correction_ref(*(x.to(kind) for x in (o, r, k, r_k, v, g))).to(o.dtype)


def _forward(
    o: torch.Tensor, r: torch.Tensor, k: torch.Tensor, r_k: torch.Tensor, v: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    dtype = accumulation_dtype(o)
    bonus = _head_sum(r.to(dtype) * k.to(dtype), r_k.to(dtype))
    out = bonus * v.to(dtype)
    return out.view(o.shape).add_(o.to(dtype)).mul_(g.to(dtype)).to(o.dtype)


_correct_and_gate = hand_differentiated(_forward, gate_output_correction_backward, _formula)

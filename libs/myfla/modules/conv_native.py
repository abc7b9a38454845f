"""The short convolution by the compiled CPU kernels (`myfla.utils.native`), under autograd."""

import functools
from typing import Any, Optional

import torch

from myfla.modules.conv_function import formula
from myfla.utils.autograd import backward_through, records
from myfla.utils.native import native
from myfla.utils.rows import from_rows, to_rows

__all__ = ["conv_kernels", "conv_native", "final_state_native"]


def conv_kernels(weight: torch.Tensor, *others: Optional[torch.Tensor]) -> Any:
    """The package with the kernels, if it can compute with these tensors, else None."""
    kernels = native(weight, *others)
    return kernels if kernels is not None and 0 not in weight.shape and weight.shape[1] <= kernels.MOST_TAPS else None


def conv_native(
    kernels: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor], state: Optional[torch.Tensor], activation: Optional[str],
    cu_seqlens: Optional[torch.Tensor],
) -> torch.Tensor:
    """``act(conv(x) + bias) + residual`` of arguments that were checked.

    Args:
        kernels: from `conv_kernels`, of all these tensors.
        x: ``[B, T, D]``; packed ``[1, T, D]`` with offsets.
        weight, bias, residual, state: ``[D, W]``, ``[D]``, as x, ``[N, D, W]``.
        activation: ``"silu"``, ``"swish"`` or None.
        cu_seqlens: ``[N + 1]`` or None.

    Returns:
        ``[B, T, D]`` in the dtype of x.
    """
    if records(x, weight, bias, residual, state):
        return _Conv.apply(kernels, x, weight, bias, residual, state, activation, cu_seqlens)
    return kernels.conv_forward(x, weight, bias, residual, state, activation is not None, cu_seqlens)[0]


def final_state_native(
    kernels: Any, x: torch.Tensor, width: int, state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The last ``width`` inputs of each sequence, ``[N, D, width]``, without autograd."""
    taps = x.new_empty(x.shape[2], width)  # read, but without effect: there is no y
    return kernels.conv_forward(x, taps, state=state, cu_seqlens=cu_seqlens, y=False, final=dtype)[1]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: Any, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor],
        residual: Optional[torch.Tensor], state: Optional[torch.Tensor], activation: Optional[str],
        cu_seqlens: Optional[torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, bias, residual, state)
        ctx.kernels, ctx.activation, ctx.cu_seqlens = kernels, activation, cu_seqlens
        return kernels.conv_forward(x, weight, bias, residual, state, activation is not None, cu_seqlens)[0]

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, weight, bias, residual, state = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:6]
        if torch.is_grad_enabled():
            plain = functools.partial(_formula, activation=ctx.activation, cu_seqlens=ctx.cu_seqlens)
            return (None, *backward_through(plain, [x, weight, bias, residual, state], needs, [dy]), None, None)
        dx, dweight, dbias, dstate = ctx.kernels.conv_backward(
            dy, x, weight, bias, state, ctx.activation is not None, ctx.cu_seqlens, needs[0], needs[4])
        return (
            None,
            dx,
            dweight.to(weight.dtype) if needs[1] else None,
            dbias.to(bias.dtype) if needs[2] else None,
            dy.to(residual.dtype) if needs[3] else None,
            dstate.to(state.dtype) if needs[4] else None,
            None,
            None,
        )


def _formula(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    state: Optional[torch.Tensor], activation: Optional[str], cu_seqlens: Optional[torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """In plain operations, for second derivatives."""
    if cu_seqlens is None:
        return formula(x, weight, bias, residual, state, activation, None)
    residual = None if residual is None else to_rows(residual, cu_seqlens)
    return from_rows(formula(to_rows(x, cu_seqlens), weight, bias, residual, state, activation, None), cu_seqlens)

"""The causal depthwise convolution."""

from typing import Optional, Tuple

import torch

from myfla_native.library import DTYPES, declare, empty, pointer, threads

__all__ = ["MOST_TAPS", "conv_backward", "conv_forward"]

MOST_TAPS = 16
"""Largest supported width of a convolution."""

_forward = declare("mn_conv_forward", "piin piin pn pn pn p iiii n pp n n")
_backward = declare("mn_conv_backward", "piin piin pn pn pn p iiii n pippn")


def conv_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    residual: Optional[torch.Tensor] = None,
    state: Optional[torch.Tensor] = None,
    silu: bool = True,
    cu_seqlens: Optional[torch.Tensor] = None,
    y: bool = True,
    final: Optional[torch.dtype] = None,
) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
    """``act(conv(x) + bias) + residual``, and the last inputs.

    Args:
        x: ``[B, T, D]``; packed ``[1, T, D]`` with offsets.
        weight: ``[D, W]``, W up to `MOST_TAPS`.
        bias: ``[D]``.
        residual: shaped as x.
        state: ``[N, D, W]``.
        silu: the activation; without it there is none.
        cu_seqlens: ``[N + 1]``.
        y: whether the result is needed.
        final: dtype of the final state, or None if it is not needed.

    Returns:
        y ``[B, T, D]`` in the dtype of x or None, the final state ``[N, D, W]`` or None.
    """
    B, T, D = x.shape
    W = weight.shape[1]
    x, weight, offsets = rows(x), weight.contiguous(), offsets_of(cu_seqlens)
    residual = None if residual is None else rows(residual)
    state = None if state is None else state.contiguous()
    bias = None if bias is None else bias.contiguous()
    N = B if offsets is None else offsets.shape[0] - 1
    out = empty((B, T, D), x.dtype) if y else None
    last = None if final is None else x.new_empty((N, D, W), dtype=final)
    _forward(
        *of_rows(x), *of_rows(residual), *typed(weight), *typed(bias), *typed(state), pointer(offsets), N, T, D, W,
        silu, pointer(out), pointer(last), 0 if final is None else DTYPES[final], threads(),
    )  # fmt: skip
    return out, last


def conv_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    state: Optional[torch.Tensor] = None,
    silu: bool = True,
    cu_seqlens: Optional[torch.Tensor] = None,
    dx: bool = True,
    dstate: bool = False,
    into: Optional[torch.Tensor] = None,
) -> Tuple[Optional[torch.Tensor], torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """Gradients of `conv_forward`, except that of the residual, which is ``dy``.

    Args:
        dy: ``[B, T, D]``.
        dx, dstate: whether they are needed.
        into: shaped as x and in its dtype, receives the gradient of x; rows ``[D]`` without gaps and at equal
            distances. It may be ``dy``.

    Returns:
        of x in its dtype or None, of the weight ``[D, W]`` and the bias ``[D]`` in float32, of the state ``[N, D, W]``
        in float32 or None.
    """
    B, T, D = x.shape
    W = weight.shape[1]
    x, dy, weight, offsets = rows(x), rows(dy), weight.contiguous(), offsets_of(cu_seqlens)
    bias = None if bias is None else bias.contiguous()
    state = None if state is None else state.contiguous()
    N = B if offsets is None else offsets.shape[0] - 1
    of_x = into if into is not None else empty((B, T, D), x.dtype) if dx else None
    of_state = x.new_zeros((N, D, W), dtype=torch.float32) if dstate else None
    of_taps = x.new_empty((W + 1, D), dtype=torch.float32)
    _backward(
        *of_rows(x), *of_rows(dy), *typed(weight), *typed(bias), *typed(state), pointer(offsets), N, T, D, W, silu,
        pointer(of_x), D if of_x is None else of_x.stride(1), pointer(of_taps), pointer(of_state), threads(),
    )  # fmt: skip
    return of_x, of_taps[:W].flip(0).t(), of_taps[W], of_state


def rows(x: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it in which each row ``[D]`` of ``[..., D]`` is without gaps."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def of_rows(x: Optional[torch.Tensor]) -> Tuple:
    return (None, 0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1), DTYPES[x.dtype])


def typed(x: Optional[torch.Tensor]) -> Tuple:
    return (None, 0) if x is None else (x.data_ptr(), DTYPES[x.dtype])


def offsets_of(cu_seqlens: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    return None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64).contiguous()

"""Norms over groups of channels with an output gate, and rows of length one."""

from typing import Optional, Tuple

import torch

from myfla_native.convolution import typed
from myfla_native.library import DTYPES, declare, empty, pointer, threads

__all__ = ["norm_backward", "norm_forward"]

GATES = {None: 0, "silu": 1, "swish": 1, "sigmoid": 2}

_forward = declare("mn_norm_forward", "pin pin n pn pn iii d nn pn pp n")
_backward = declare("mn_norm_backward", "pin pin pin n pn pn iii nn pp ppip n")

Rows = Tuple[Optional[int], int, int]


def norm_forward(
    h: torch.Tensor,
    g: Optional[torch.Tensor],
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    eps: float,
    groups: int,
    centred: bool,
    activation: Optional[str],
    dtype: torch.dtype,
    unit_length: bool = False,
    keep: bool = True,
) -> Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:
    """``((h - mean) * rstd * weight + bias) * act(g)``.

    Args:
        h: ``[..., D]``; each group of ``D / groups`` channels is normalised separately.
        g: shaped as h.
        weight, bias: ``[D]``.
        eps: added to the mean square, or with ``unit_length`` to the sum of squares.
        centred: subtract the mean.
        activation: of the gate, ``"silu"``, ``"swish"`` or ``"sigmoid"``.
        dtype: of the result.
        unit_length: rows of length one.
        keep: also return the tensors for the backward pass.

    Returns:
        y shaped as h; mean (where centred) and rstd ``[rows, groups]`` float32, or None.
    """
    D = h.shape[-1]
    of_h, of_g = _rows(h, D), _rows(g, D)
    count = h.numel() // D
    y = empty(h.shape, dtype)
    mean = h.new_empty((count, groups), dtype=torch.float32) if keep and centred else None
    rstd = h.new_empty((count, groups), dtype=torch.float32) if keep else None
    _forward(
        *of_h[1], *of_g[1], GATES[activation], *typed(weight), *typed(bias), count, D, groups, eps, unit_length,
        centred, y.data_ptr(), DTYPES[dtype], pointer(mean), pointer(rstd), threads(),
    )  # fmt: skip
    return y, mean, rstd


def norm_backward(
    dy: torch.Tensor,
    h: torch.Tensor,
    g: Optional[torch.Tensor],
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    mean: Optional[torch.Tensor],
    rstd: torch.Tensor,
    activation: Optional[str],
    dh: bool = True,
    dg: bool = True,
    dparameters: bool = True,
    unit_length: bool = False,
    into: Optional[torch.Tensor] = None,
    gate_into: Optional[torch.Tensor] = None,
) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of `norm_forward`; ``mean`` and ``rstd`` are its second and third result.

    Args:
        into: shaped as h, in its dtype and without gaps, receives the gradient of h. It may be ``dy``.
        gate_into: shaped as g and in its dtype, receives the gradient of g; its rows ``[D]`` are without gaps and at
            equal distances.

    Returns:
        of h and g in their dtypes, and ``[2, D]`` float32, of weight and bias; each None if not requested.
    """
    D = h.shape[-1]
    of_dy, of_h, of_g = _rows(dy, D), _rows(h, D), _rows(g, D)
    count, groups = rstd.shape
    of = into if into is not None else empty(h.shape, h.dtype) if dh else None
    gate = gate_into
    if gate is None and g is not None and dg:
        gate = empty(g.shape, g.dtype)
    parameters = h.new_empty((2, D), dtype=torch.float32) if dparameters else None
    _backward(
        *of_dy[1], *of_h[1], *of_g[1], GATES[activation], *typed(weight), *typed(bias), count, D, groups, unit_length,
        mean is not None, pointer(mean), rstd.data_ptr(), pointer(of), pointer(gate), _rows(gate, D)[1][1],
        pointer(parameters), threads(),
    )  # fmt: skip
    return of, gate, parameters


def _rows(x: Optional[torch.Tensor], D: int) -> Tuple[Optional[torch.Tensor], Rows]:
    """The tensor as rows ``[n, D]`` at equal distances, and its address. It must be kept as long as the address is
    used."""
    if x is None:
        return None, (None, 0, 0)
    if not x.is_contiguous():
        x = x.reshape(-1, D)  # a view, where the distances are equal
        x = x if x.stride(1) == 1 else x.contiguous()
        return x, (x.data_ptr(), x.stride(0), DTYPES[x.dtype])
    return x, (x.data_ptr(), D, DTYPES[x.dtype])


"""Mixing every token with the one before it, once for each of the layer's inputs."""

from typing import Iterator, Optional, Sequence, Tuple

import torch

from myfla.utils.autograd import hand_differentiated
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = ["fused_addcmul_rwkv7", "torch_addcmul_rwkv7"]

BLOCK = 1 << 16
"""Elements worked on at a time, so that the sums of the backward read each gradient while it is in the cache."""

Six = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Optional[torch.Tensor]]


def fused_addcmul_rwkv7(
    hidden_states: torch.Tensor,
    delta: torch.Tensor,
    xr: torch.Tensor,
    xw: torch.Tensor,
    xk: torch.Tensor,
    xv: torch.Tensor,
    xa: torch.Tensor,
    xg: Optional[torch.Tensor] = None,
) -> Six:
    """``hidden_states + delta * x`` for each of six mixing vectors, in one node of the graph.

    Computed in float32 (float64 for float64 input) and rounded once; the gradients of ``hidden_states`` and
    ``delta`` are summed over the six before they are rounded. No argument is written to.

    Args:
        hidden_states, delta: ``[B, T, D]``; ``delta`` is the token before minus the token (`token_shift`).
        xr, xw, xk, xv, xa, xg: ``[1, 1, D]`` or ``[D]``; ``xg`` may be None.

    Returns:
        six tensors ``[B, T, D]`` in the dtype of ``hidden_states``; the last is None where ``xg`` is.

    Raises:
        ValueError: ``delta`` has another shape than ``hidden_states``.

    Example:
        >>> x = torch.ones(1, 2, 3)
        >>> fused_addcmul_rwkv7(x, x, *[torch.full((3,), 2.0)] * 6)[0][0, 0]
        tensor([3., 3., 3.])
    """
    if delta.shape != hidden_states.shape:
        raise value_error("fused_addcmul_rwkv7", "delta", f"must have the shape of hidden_states, "
                          f"{tuple(hidden_states.shape)}", tuple(delta.shape))
    mixes = [xr, xw, xk, xv, xa] + ([] if xg is None else [xg])
    mixed = _addcmul(hidden_states, delta, *mixes)
    return mixed if xg is not None else (*mixed, None)


def torch_addcmul_rwkv7(
    hidden_states: torch.Tensor,
    delta: torch.Tensor,
    xr: torch.Tensor,
    xw: torch.Tensor,
    xk: torch.Tensor,
    xv: torch.Tensor,
    xa: torch.Tensor,
    xg: Optional[torch.Tensor] = None,
) -> Six:
    """`fused_addcmul_rwkv7` as plain operations, in the input's dtype: the reference.

    Example:
        >>> x = torch.ones(1, 1, 1)
        >>> torch_addcmul_rwkv7(x, x, x, x, x, x, x)[5] is None
        True
    """
    r, w, k, v, a = (torch.addcmul(hidden_states, delta, x) for x in (xr, xw, xk, xv, xa))
    return r, w, k, v, a, None if xg is None else torch.addcmul(hidden_states, delta, xg)


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of a few rows each, `BLOCK` elements together."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def _forward(hidden: torch.Tensor, delta: torch.Tensor, *mixes: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    dtype = accumulation_dtype(hidden)
    wide, step = hidden.to(dtype), delta.to(dtype)
    return tuple(torch.addcmul(wide, step, x.to(dtype)).to(hidden.dtype) for x in mixes)


def _backward(
    grads: Sequence[torch.Tensor], hidden: torch.Tensor, delta: torch.Tensor, *mixes: torch.Tensor
) -> Tuple[torch.Tensor, ...]:
    dtype, width = accumulation_dtype(delta), delta.shape[-1]
    flat, rows = delta.reshape(-1, width), [g.reshape(-1, width) for g in grads]
    d_hidden, d_delta = (torch.empty_like(flat, dtype=x.dtype) for x in (hidden, delta))
    d_mixes = [torch.zeros(width, dtype=dtype, device=delta.device) for _ in mixes]
    wide = [x.to(dtype).reshape(width) for x in mixes]
    for at in row_blocks(*flat.shape):
        step = flat[at].to(dtype)
        to_hidden, to_delta = torch.zeros_like(step), torch.zeros_like(step)
        for grad, x, total in zip(rows, wide, d_mixes):
            part = grad[at].to(dtype)
            to_hidden.add_(part)
            to_delta.addcmul_(part, x)
            total.add_((part * step).sum(0))
        d_hidden[at], d_delta[at] = to_hidden, to_delta
    d_mixes = [d.to(x.dtype).view(x.shape) for d, x in zip(d_mixes, mixes)]
    return (d_hidden.view(delta.shape), d_delta.view(delta.shape), *d_mixes)


_addcmul = hand_differentiated(_forward, _backward, linear=0)

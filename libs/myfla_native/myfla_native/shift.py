"""The difference between each token and the one before it."""

from typing import Any, Callable, Optional, Tuple

import torch

from myfla_native.convolution import of_rows, offsets_of, rows, typed
from myfla_native.library import declare, empty, pointer, threads

__all__ = ["shift_backward", "shift_forward"]

_forward = declare("mn_shift_forward", "piin pn p iii pp n")
_backward = declare("mn_shift_backward", "piin pn p iii pp n")


def shift_forward(
    x: torch.Tensor, cache: Optional[torch.Tensor] = None, cu_seqlens: Optional[torch.Tensor] = None
) -> Tuple[torch.Tensor, torch.Tensor]:
    """``x[t-1] - x[t]`` ``[B, T, D]``, and the last token of each sequence ``[N, D]``, both in the dtype of x.

    Args:
        x: ``[B, T, D]``; packed ``[1, T, D]`` with offsets.
        cache: ``[N, D]``, the tokens before the first; zeros if not given.
        cu_seqlens: ``[N + 1]``.
    """
    return _call(_forward, x, cache, cu_seqlens, True)


def shift_backward(
    ddelta: torch.Tensor, dlast: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None, dcache: bool = True
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Gradients of x and of the cache (or None), from those of both results of `shift_forward`."""
    return _call(_backward, ddelta, dlast, cu_seqlens, dcache)


def _call(
    function: Callable[..., None], x: torch.Tensor, beside: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor], second: bool,
) -> Any:  # fmt: skip
    B, T, D = x.shape
    x, offsets = rows(x), offsets_of(cu_seqlens)
    beside = None if beside is None else beside.contiguous()
    N = B if offsets is None else offsets.shape[0] - 1
    of_x, of_beside = empty((B, T, D), x.dtype), x.new_empty((N, D)) if second else None
    function(
        *of_rows(x), *typed(beside), pointer(offsets), N, T, D, of_x.data_ptr(), pointer(of_beside), threads()
    )  # fmt: skip
    return of_x, of_beside

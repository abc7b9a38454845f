"""The difference between each token and the one before it (RWKV, arXiv 2305.13048)."""

from typing import Any, Optional, Tuple, Union

import torch

from myfla.utils.autograd import backward_through
from myfla.utils.errors import value_error
from myfla.utils.native import native
from myfla.utils.rows import from_rows, to_rows
from myfla.utils.tensors import check_tensor
from myfla.utils.tracing import tracing
from myfla.utils.varlen import check_cu_seqlens

__all__ = ["TokenShift", "token_shift", "token_shift_ref"]

Ends = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def token_shift(
    x: torch.Tensor,
    cu_seqlens: Optional[torch.Tensor] = None,
    cache: Optional[torch.Tensor] = None,
    output_cache: bool = False,
    chunk_indices: Optional[torch.Tensor] = None,
) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
    """``x_{t-1} - x_t``, where the token before a sequence's first is its cache, or zero.

    Args:
        x: ``[B, T, D]``, or ``[1, total, D]`` with ``cu_seqlens``.
        cu_seqlens: ``[N + 1]`` offsets of packed sequences; empty ones are fine.
        cache: ``[N, D]``, the last token of each sequence in the call before. It is not changed.
        output_cache: also return the cache for the next call.
        chunk_indices: official argument; not needed here.

    Returns:
        the differences ``[B, T, D]`` in x's dtype; with ``output_cache`` also ``[N, D]``, the last token of each
        sequence (of an empty one: its cache, or zeros).

    Raises:
        ValueError: a wrong rank, cache shape or offset.

    Example:
        >>> token_shift(torch.tensor([[[1.0], [3.0]]]), output_cache=True)
        (tensor([[[-1.],
                 [-2.]]]), tensor([[3.]]))
    """
    check_tensor("token_shift", "x", x)
    if x.dim() != 3:
        raise value_error("token_shift", "x", "must have shape [B, T, D]", tuple(x.shape))
    if x.dtype == torch.bool or x.is_complex():
        raise value_error("token_shift", "x", "must hold real numbers", x.dtype)
    batch, tokens, width = x.shape
    rows = batch if cu_seqlens is None else check_cu_seqlens("token_shift", cu_seqlens, batch, tokens, x)
    if cu_seqlens is not None:
        check_tensor("token_shift", "cu_seqlens", cu_seqlens, x)
        if cu_seqlens.is_meta and not x.is_meta:
            raise value_error("token_shift", "cu_seqlens", "must have values", "a tensor on the device meta")
    if cache is not None:
        check_tensor("token_shift", "cache", cache, x)
    if cache is not None and tuple(cache.shape) != (rows, width):
        raise value_error("token_shift", "cache", f"must have shape [N, D] = {(rows, width)}", tuple(cache.shape))
    kernels = native(x, cache)
    if tracing(x):
        delta, last = _formula(x, cu_seqlens, cache)
    elif torch.is_grad_enabled():
        delta, last = TokenShift.apply(x, cu_seqlens, cache, output_cache, chunk_indices)
    elif kernels is not None:
        delta, last = kernels.shift_forward(x, cache, cu_seqlens)
    else:
        delta, last = _forward(x, cache, None if cu_seqlens is None else _ends(cu_seqlens), rows)
    return (delta, last) if output_cache else delta


def token_shift_ref(x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> torch.Tensor:
    """`token_shift` without a cache, sequence by sequence: the reference.

    Example:
        >>> token_shift_ref(torch.tensor([[[1.0], [3.0]]]))
        tensor([[[-1.],
                 [-2.]]])
    """
    if cu_seqlens is None:
        return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1) - x
    bounds = cu_seqlens.tolist()
    pieces = [token_shift_ref(x[:, first:last]) for first, last in zip(bounds[:-1], bounds[1:])]
    return torch.cat(pieces, dim=1) if pieces else torch.zeros_like(x)


class TokenShift(torch.autograd.Function):
    """`token_shift` without checks, under the official name: ``apply(x, cu_seqlens, cache, ...)`` returns both results.

    Example:
        >>> TokenShift.apply(torch.tensor([[[1.0], [3.0]]]), None, None, True)[0].flatten().tolist()
        [-1.0, -2.0]
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None, cache: Optional[torch.Tensor] = None,
        output_cache: bool = False, chunk_indices: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The differences and the last tokens; arguments as `token_shift`."""
        ctx.cu_seqlens, ctx.kernels = cu_seqlens, native(x, cache)
        if ctx.kernels is not None:
            ctx.cache_dtype = None if cache is None else cache.dtype
            return ctx.kernels.shift_forward(x, cache, cu_seqlens)
        ctx.ends = None if cu_seqlens is None else _ends(cu_seqlens)
        ctx.cache_dtype = None if cache is None else cache.dtype
        rows = x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        return _forward(x, cache, ctx.ends, rows)

    @staticmethod
    def backward(ctx: Any, d_delta: torch.Tensor, d_last: torch.Tensor) -> Any:
        """The gradients of ``x`` and ``cache``, from ``d_delta`` and ``d_last``, those of both results."""
        if torch.is_grad_enabled():
            return _again(ctx, d_delta, d_last)
        if ctx.kernels is not None:
            dx, d_cache = ctx.kernels.shift_backward(d_delta, d_last, ctx.cu_seqlens, ctx.cache_dtype is not None)
            return dx, None, None if d_cache is None else _to(d_cache, ctx.cache_dtype), None, None
        dx = torch.empty_like(d_delta, memory_format=torch.contiguous_format)
        torch.sub(d_delta[:, 1:], d_delta[:, :-1], out=dx[:, :-1])
        if ctx.ends is None:
            if not d_delta.shape[1]:
                return dx, None, _to(d_last, ctx.cache_dtype), None, None
            dx[:, -1] = d_last - d_delta[:, -1]
            return dx, None, _to(d_delta[:, 0], ctx.cache_dtype), None, None
        filled, first, last = ctx.ends
        dx[0].index_copy_(0, last, d_last.index_select(0, filled) - d_delta[0].index_select(0, last))
        d_cache = d_last.index_copy(0, filled, d_delta[0].index_select(0, first))
        return dx, None, _to(d_cache, ctx.cache_dtype), None, None


def _again(ctx: Any, d_delta: torch.Tensor, d_last: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
    """The gradients as autograd can record them; the shift is linear, so they do not depend on its inputs."""
    x, has_cache = torch.zeros_like(d_delta).requires_grad_(), ctx.cache_dtype is not None
    cache = torch.zeros_like(d_last, dtype=ctx.cache_dtype).requires_grad_() if has_cache else None

    def shift(x: torch.Tensor, cache: Optional[torch.Tensor]) -> Tuple[torch.Tensor, torch.Tensor]:
        return _formula(x, ctx.cu_seqlens, cache)

    dx, d_cache = backward_through(shift, [x, cache], [True, has_cache], [d_delta, d_last])
    return dx, None, d_cache, None, None


def _forward(
    x: torch.Tensor, cache: Optional[torch.Tensor], ends: Optional[Ends], rows: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    delta = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.sub(x[:, :-1], x[:, 1:], out=delta[:, 1:])
    if ends is None:
        if x.shape[1]:
            delta[:, 0] = -x[:, 0] if cache is None else cache.to(x.dtype) - x[:, 0]
            return delta, x[:, -1].clone()
        return delta, x.new_zeros(rows, x.shape[2]) if cache is None else cache.to(x.dtype, copy=True)
    filled, first, last = ends
    start = -x[0].index_select(0, first)
    final = x.new_zeros(rows, x.shape[2]) if cache is None else cache.to(x.dtype, copy=True)
    if cache is not None:
        start += final.index_select(0, filled)
    delta[0].index_copy_(0, first, start)
    return delta, final.index_copy_(0, filled, x[0].index_select(0, last))


def _formula(
    x: torch.Tensor, cu_seqlens: Optional[torch.Tensor], cache: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`_forward` in plain operations, for recorded graphs (`myfla.utils.tracing`)."""
    rows = x if cu_seqlens is None else to_rows(x, cu_seqlens)
    before = rows.new_zeros(rows.shape[0], 1, rows.shape[2]) if cache is None else cache.to(x.dtype).unsqueeze(1)
    rows = torch.cat([before, rows], dim=1)
    delta = rows[:, :-1] - rows[:, 1:]
    if cu_seqlens is None:
        return delta, rows[:, -1].clone()
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).to(x.device, torch.int64)
    return from_rows(delta, cu_seqlens), rows[torch.arange(rows.shape[0], device=x.device), lengths]


def _ends(cu_seqlens: torch.Tensor) -> Ends:
    """The sequences that are not empty, and the first and last token of each."""
    bounds = cu_seqlens.long()
    filled = (bounds[1:] > bounds[:-1]).nonzero(as_tuple=True)[0]
    return filled, bounds[:-1].index_select(0, filled), bounds[1:].index_select(0, filled) - 1


def _to(grad: torch.Tensor, dtype: Optional[torch.dtype]) -> Optional[torch.Tensor]:
    return None if dtype is None else grad.to(dtype, copy=True)

"""The recurrence token by token, forward only: what decoding runs on.

Every token is computed from slices of one shape and alignment, so that a sequence fed in pieces gives, bit for bit,
what it gives in one. With ``r_t = (q_t exp(gk_t))^T S`` and ``u_t = a_t^T S`` read in one product,
``o_t = r_t + (q_t b_t) u_t + (q_t k_t) v_t`` needs no second look at the state.
"""

from typing import List, Optional, Tuple

import torch

from myfla.ops.generalized_delta_rule.dplr.decode import decoding_step
from myfla.utils.autocast import without_autocast
from myfla.utils.dtypes import accumulation_dtype

SEGMENT = 1 << 16
"""Elements of one float32 buffer that are prepared at a time; bounds the memory of a long sequence."""

LANES = 16
"""Rows of all matrices start at multiples of this many elements: products of odd sizes depend on alignment."""


def aligned(size: int) -> int:
    """``size`` rounded up to a multiple of `LANES`, at least one."""
    return max(LANES, -(-size // LANES) * LANES)


@without_autocast
def recurrent_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float,
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
    rows: int,
    inplace: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Run the rule over checked arguments.

    Args:
        q, k, a, b, gk: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        scale: factor on q.
        initial_state: ``[N, H, K, V]`` or None.
        cu_seqlens: ``[N + 1]`` or None.
        rows: N.
        inplace: ``initial_state`` may be written, if it is as wide as the sums.

    Returns:
        o ``[B, T, H, V]`` in v's dtype and the final state ``[N, H, K, V]``, float32 or float64.
    """
    dtype = accumulation_dtype(q, k, v, initial_state)
    batch, tokens, heads, key = q.shape
    value = v.shape[-1]
    if cu_seqlens is None and tokens == 1 and initial_state is not None and _fits(initial_state, dtype):
        return decoding_step(initial_state, (q, k, v, a, b, gk), scale, inplace)
    state = _padded(initial_state, (rows, heads, key, value), dtype, v, inplace)
    if cu_seqlens is None:
        counts, order = [batch] * tokens, None
        inputs = [x.transpose(0, 1) for x in (q, k, v, a, b, gk)]
    else:
        rank, order, counts = _by_position(cu_seqlens)
        inputs = [x[0] for x in (q, k, v, a, b, gk)]
        state = torch.empty_like(state).index_copy_(0, rank, state)
    out = v.new_empty(v.shape)
    o = out.transpose(0, 1) if order is None else out[0]
    step = max(1, SEGMENT // max(1, rows * heads * state.shape[2]))
    start = 0
    for first in range(0, len(counts), step):
        part = counts[first : first + step]
        if order is None:
            here = slice(first, first + len(part))
            o[here] = _segment([x[here] for x in inputs], part, state, scale).to(o.dtype)
        else:
            at = order[start : start + sum(part)]
            pieces = [x.index_select(0, at) for x in inputs]
            o[at] = _segment(pieces, part, state, scale).to(o.dtype)
        start += sum(part)
    final = state if state.shape[2:] == (key, value) else state[:, :, :key, :value].contiguous()
    return out, final if order is None else final.index_select(0, rank)


def _segment(inputs: List[torch.Tensor], counts: List[int], state: torch.Tensor, scale: float) -> torch.Tensor:
    """Run some positions; changes ``state`` (ours alone) in place.

    Args:
        inputs: q, k, v, a, b, gk as ``[positions, rows, H, D]``, or ``[tokens, H, D]`` where rows vary.
        counts: rows at each position, not increasing.
        state: ``[N, H, K', V']``, sizes aligned.

    Returns:
        outputs, in the shape of v.
    """
    heads, shape = inputs[2].shape[-2], inputs[2].shape
    q, k, v, a, b, gk = (_rows(x, state) for x in inputs)
    tall, wide = state.shape[2:]
    q, decay = q if scale == 1 else q * scale, gk.exp()
    reads, writes, values = (torch.stack(pair, dim=1) for pair in ((a, q * decay), (b, k), (v, v)))
    flat, decay, across = state.view(-1, tall, wide), decay.unsqueeze(-1), writes.transpose(1, 2)
    found = torch.empty_like(values)
    start = 0
    for count in counts:
        at, now = slice(start, start + count * heads), flat[: count * heads]
        read, written = found[at], values[at]
        torch.bmm(reads[at], now, out=read)  # into contiguous memory: anything else goes matrix by matrix
        written[:, 0] = read[:, 0]
        now.mul_(decay[at]).baddbmm_(across[at], written)
        start += count * heads
    own = (q.unsqueeze(1) * writes).sum(-1, keepdim=True)
    out = found[:, 1].addcmul(own[:, 0], values[:, 0]).addcmul_(own[:, 1], values[:, 1])
    return out[:, : shape[-1]].reshape(shape)


def _padded(
    given: Optional[torch.Tensor], shape: Tuple[int, ...], dtype: torch.dtype, like: torch.Tensor, inplace: bool
) -> torch.Tensor:
    """The state in the sizes that are computed in; ``given`` itself where it has them and may be written."""
    rows, heads, key, value = shape
    wide = (rows, heads, aligned(key), aligned(value))
    if given is None or wide != shape:
        state = like.new_zeros(wide, dtype=dtype)
        if given is not None:
            state[:, :, :key, :value] = given
        return state
    return given if inplace else like.new_empty(shape, dtype=dtype).copy_(given)


def _fits(state: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a state is as those are that are computed in."""
    key, value = state.shape[2:]
    aligned_sizes = key % LANES == 0 and value % LANES == 0 and state.numel() > 0
    return aligned_sizes and state.dtype is dtype and state.is_contiguous()


def _rows(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """``[..., D]`` as contiguous rows in the state's dtype, filled up with zeros to an aligned size."""
    x = x.to(state.dtype).reshape(-1, x.shape[-1])
    short = aligned(x.shape[-1]) - x.shape[-1]
    return torch.nn.functional.pad(x, (0, short)) if short else x.contiguous()


def _by_position(cu_seqlens: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, List[int]]:
    """Packed tokens by their position in their sequence, longest sequence first.

    Returns:
        the place of every sequence in that order ``[N]``, the tokens in the order they are run ``[total]``, and how
        many there are at each position.
    """
    bounds = cu_seqlens.to("cpu", torch.int64)
    lengths = bounds[1:] - bounds[:-1]
    longest = torch.sort(lengths, descending=True, stable=True).indices
    rank = torch.empty_like(longest).index_copy_(0, longest, torch.arange(lengths.numel()))
    position = torch.arange(int(bounds[-1])) - torch.repeat_interleave(bounds[:-1], lengths)
    sort_key = position * lengths.numel() + torch.repeat_interleave(rank, lengths)
    order = torch.sort(sort_key).indices
    counts = torch.bincount(position).tolist() if position.numel() else []
    return rank.to(cu_seqlens.device), order.to(cu_seqlens.device), counts

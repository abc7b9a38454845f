"""Forward of the chunk form.

For one chunk of one head, with rows for tokens, ``S`` the incoming state and the decays of `chunk_decay`::

    T  = (I + tril(pair * K (beta K)^T, -1))^-1                            every chunk at once
    E  = T (V - (rise K) S)                                                chunk after chunk
    S' = whole S + (beta fall K)^T E
    O  = scale (rise Q) S + scale tril(pair * Q (beta K)^T) E              every chunk at once

``E`` holds each token's error against the memory as it was, made consistent within the chunk by ``T`` (the WY / UT
form of DeltaNet, arXiv 2406.06484; with decay: Gated DeltaNet, arXiv 2412.06464). Q lies over K, ``[M, 2C, K]``:
what both meet is one product.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.scratch import Scratch, split_heads
from myfla.ops.common.triangular import unit_lower_inverse
from myfla.ops.gated_delta_rule.chunk_decay import Columns, causal_masks, load_columns, pair_decay, wide_dtype
from myfla.ops.gated_delta_rule.chunk_scan import Factors, scan
from myfla.utils.autocast import without_autocast

EPSILON = 1e-6
"""Added to squared lengths, as in `myfla.utils.l2norm`."""


class Saved(NamedTuple):
    """What the backward needs beside the inputs, in the layout's order."""

    opening: torch.Tensor  # [., K, V]    states before each block
    errors: torch.Tensor  # [M, C, V]     E
    inverse: torch.Tensor  # [M, C, C]    T
    pair: torch.Tensor  # [M, 2C, C]      of `pair_decay`
    products: torch.Tensor  # [M, 2C, C]  pair * Q K^T over pair * K K^T
    length: torch.Tensor  # [M, 2C, 1]    reciprocal lengths of q and k

    @staticmethod
    def sizes(chunk: int, value: int) -> Tuple[Tuple[int, int], ...]:
        """Rows and columns of all but the first, for each chunk."""
        return (chunk, value), (chunk, chunk), (2 * chunk, chunk), (2 * chunk, chunk), (2 * chunk, 1)

    @classmethod
    def empty(cls, layout: ChunkLayout, states: torch.Tensor) -> "Saved":
        """Unwritten tensors for all chunks of ``states [N, HV, K, V]``."""
        _, heads, key, value = states.shape
        sizes, chunks = cls.sizes(layout.chunk, value), layout.total * heads
        opening = states.new_empty(layout.openings * heads, key, value)
        return cls(opening, *(states.new_empty((chunks,) + size) for size in sizes))

    def part(self, block: Block, heads: int) -> "Saved":
        """What belongs to one block."""
        return Saved(self.opening[block.opening(heads)], *(x[block.span(heads)] for x in self[1:]))


def head_groups(layout: ChunkLayout, heads: int, value_heads: int) -> List[Tuple[slice, slice]]:
    """Which heads of q and k, and which of v, are worked on together."""
    step, group = layout.block_heads or heads, value_heads // heads
    firsts = range(0, heads, step)
    return [(slice(a, a + step), slice(a * group, min(a + step, heads) * group)) for a in firsts]


def largest_block(layout: ChunkLayout) -> int:
    """Number of chunks in the largest block."""
    return max([block.size for group in layout.groups for block in group], default=0)


@without_autocast
def chunk_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    layout: ChunkLayout,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    save: bool,
    unit: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
    """Outputs, final states and, if asked for, what the backward needs.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``.
        g, beta: ``[B, T, HV]``.
        initial_state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        layout: how the tokens are cut into chunks.
        dtype: what is computed in, float32 or float64.
        out_dtype: dtype of the outputs.
        save: keep what the backward needs.
        unit: bring q and k to length one first.

    Returns:
        o ``[B, T, HV, V]``, final states ``[N, HV, K, V]`` in ``dtype``, the tensors of one `Saved` after another.
    """
    key, value = k.shape[3], v.shape[3]
    out = torch.empty(v.shape, dtype=out_dtype, device=v.device)
    final = v.new_empty(layout.rows, v.shape[2], key, value, dtype=dtype)
    if initial_state is None:
        final.zero_()
    else:
        final.copy_(sort_rows(layout, initial_state))
    kept: List[torch.Tensor] = []
    for few, many in head_groups(layout, k.shape[2], v.shape[2]):
        inputs = q[:, :, few], k[:, :, few], v[:, :, many], g[:, :, many], beta[:, :, many]
        kept += _forward_heads(*inputs, final[:, many], scale, layout, save, unit, out[:, :, many])
    return out, unsort_rows(layout, final), kept


def _forward_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    scale: float,
    layout: ChunkLayout,
    save: bool,
    unit: bool,
    out: torch.Tensor,
) -> Tuple[torch.Tensor, ...]:
    """Some heads; ``states`` are those before, and afterwards those after all tokens."""
    running, heads = states.contiguous().view(-1, *states.shape[2:]), states.shape[1]
    largest, dtype = largest_block(layout) * heads, states.dtype
    saved, masks = Saved.empty(layout, states) if save else None, causal_masks(layout.chunk, scale, running)
    with Scratch(v, dtype, largest) as scratch, Scratch(v, wide_dtype(v.device, dtype), largest) as wide:
        for whole, group in zip(layout.wholes, layout.groups):
            columns = load_columns(whole, g, beta, scale, dtype)
            for block in group:
                at = _room(block, heads, saved, running, scratch)
                part = columns.part(block.within(whole, heads))
                _forward_block(block, q, k, v, part, running, masks, unit, scratch, wide, at, out)
    if not states.is_contiguous():  # else they were worked on in place
        states.copy_(running.view(states.shape))
    return tuple(saved or ())


def _room(
    block: Block, heads: int, saved: Optional[Saved], running: torch.Tensor, scratch: Scratch
) -> Saved:
    """Where a block puts what it finds: what is saved, or scratch."""
    states = running[block.states(heads)]
    if saved is None:
        named = zip(Saved._fields[1:], Saved.sizes(block.chunk, states.shape[2]))
        return Saved(states, *(scratch.get(name, block.size * heads, *size) for name, size in named))
    at = saved.part(block, heads)
    at.opening.copy_(states)
    return at


def load_rows(block: Block, x: torch.Tensor, heads: int, out: torch.Tensor, pad: bool = False) -> torch.Tensor:
    """Fill ``out [M, C, D]`` from ``x [B, T, H, D]``, its heads repeated to ``heads``."""
    block.load(x, split_heads(out, heads), pad)
    return out


def load_both(block: Block, q: torch.Tensor, k: torch.Tensor, heads: int, scratch: Scratch) -> torch.Tensor:
    """``[M, 2C, K]``: queries over keys."""
    both = scratch.get("both", block.size * heads, 2 * block.chunk, k.shape[3])
    load_rows(block, q, heads, both[:, : block.chunk])
    load_rows(block, k, heads, both[:, block.chunk :])
    return both


def _forward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    columns: Columns,
    running: torch.Tensor,
    masks: torch.Tensor,
    unit: bool,
    scratch: Scratch,
    wide: Scratch,
    at: Saved,
    out: torch.Tensor,
) -> None:
    """One block: everything but the scan is one product over all its chunks."""
    heads, chunk = v.shape[2], block.chunk
    both = load_both(block, q, k, heads, scratch)
    values = load_rows(block, v, heads, scratch.get("values", *at.errors.shape))
    meets = scratch.get("meets", *both.shape)
    if unit:
        torch.linalg.vector_norm(both, dim=-1, keepdim=True, out=at.length).square_().add_(EPSILON).rsqrt_()
        both.mul_(at.length)
    keys = both[:, chunk:]

    pair_decay(columns.sums, masks, scratch, wide, at.pair)
    torch.bmm(both, keys.transpose(1, 2), out=at.products).mul_(at.pair)
    weighted = torch.mul(at.products, columns.strength.transpose(1, 2), out=scratch.get("weighted", *at.pair.shape))
    unit_lower_inverse(weighted[:, chunk:], out=at.inverse)

    torch.mul(both, columns.meet, out=meets)
    handed = torch.mul(keys, columns.hand, out=scratch.get("handed", *keys.shape))
    reads = scratch.get("reads", both.shape[0], 2 * chunk, v.shape[3])
    scan(block, heads, Factors(columns.whole, meets, handed, at.inverse), values, running, reads, at.errors)

    result = torch.bmm(weighted[:, :chunk], at.errors, out=values).add_(reads[:, :chunk])
    block.store(split_heads(result, heads), out)

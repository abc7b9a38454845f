"""Forward of the chunk form.

For one chunk of one head, with rows for tokens, ``S`` the incoming state and the decays of `chunk_decay`::

    T  = (I + tril(pair * K (beta K)^T, -1))^-1                            every chunk at once
    E  = T (V - (rise K) S)                                                chunk after chunk
    S' = whole S + (beta fall K)^T E
    O  = scale (rise Q) S + scale tril(pair * Q (beta K)^T) E              every chunk at once

``E`` holds each token's error against the memory as it was, made consistent within the chunk by ``T`` (the WY / UT
form of DeltaNet, arXiv 2406.06484; with decay: Gated DeltaNet, arXiv 2412.06464). Q lies over K, ``[M, 2C, K]``:
what is done to both is done at once.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.triangular import unit_lower_inverse
from myfla.ops.common.tuning import keeps_states
from myfla.ops.common.workspace import Workspace, part, split_heads
from myfla.ops.gated_delta_rule.chunk_decay import Columns, load_columns, pair_decay, wide_dtype
from myfla.ops.gated_delta_rule.chunk_scan import Factors, scan
from myfla.utils.autocast import without_autocast

EPSILON = 1e-6
"""Added to squared lengths, as in `myfla.utils.l2norm`."""


class Saved(NamedTuple):
    """What the backward needs beside the inputs, in the layout's order."""

    states: torch.Tensor  # [., K, V]     states before each chunk; of large inputs before each block only
    errors: torch.Tensor  # [M, C, V]     E
    turned: torch.Tensor  # [M, C, C]     T^T
    pair: torch.Tensor  # [M, C, C]       of `pair_decay`
    products: torch.Tensor  # [M, 2C, C]  scale pair * Q K^T over pair * K K^T
    length: torch.Tensor  # [M, 2C, 1]    reciprocal lengths of q and k
    # What is quickly found again is kept of short inputs only; of others these have M = 0.
    both: torch.Tensor  # [M, 2C, K]      queries over keys, of length one if asked for
    handed: torch.Tensor  # [M, C, K]     of `Factors`
    weighted: torch.Tensor  # [M, 2C, C]  products * beta

    @staticmethod
    def sizes(chunk: int, key: int, value: int) -> Tuple[Tuple[int, int], ...]:
        """Rows and columns of all but the first, for each chunk."""
        tokens, square = (2 * chunk, key), (2 * chunk, chunk)
        always = (chunk, value), (chunk, chunk), (chunk, chunk), square, (2 * chunk, 1)
        return (*always, tokens, (chunk, key), square)

    @classmethod
    def empty(cls, layout: ChunkLayout, states: torch.Tensor) -> "Saved":
        """Unwritten tensors for all chunks of ``states [N, HV, K, V]``."""
        _, heads, key, value = states.shape
        chunks, small = layout.total * heads, keeps_states(layout.total * heads * key * value, states.device)
        counts = [chunks if small else layout.openings * heads] + 5 * [chunks] + 3 * [chunks if small else 0]
        sizes = ((key, value), *cls.sizes(layout.chunk, key, value))
        return cls(*(states.new_empty((count,) + size) for count, size in zip(counts, sizes)))

    @property
    def complete(self) -> bool:
        """Whether every chunk's states and tokens are there, not only each block's first states."""
        return self.both.shape[0] == self.errors.shape[0]

    def part(self, block: Block, heads: int) -> "Saved":
        """What belongs to one block."""
        span = block.span(heads)
        states = part(self.states, span if self.complete else block.opening(heads))
        return Saved(states, *(part(x, span) for x in self[1:]))


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
        o ``[B, T, HV, V]``, final states ``[N, HV, K, V]`` in ``dtype``, and for one group of heads after another the
        tensors of its `Saved` and of its `Columns`.
    """
    key, value = k.shape[3], v.shape[3]
    out = v.new_empty(v.shape, dtype=out_dtype)
    final = v.new_empty((layout.rows, v.shape[2], key, value), dtype=dtype)
    if initial_state is None:
        final.zero_()
    else:
        final.copy_(sort_rows(layout, initial_state))
    kept: List[torch.Tensor] = []
    for few, many in head_groups(layout, k.shape[2], v.shape[2]):
        inputs = part(q, few, 2), part(k, few, 2), part(v, many, 2), part(g, many, 2), part(beta, many, 2)
        states, fresh = part(final, many, 1), initial_state is None
        kept += _forward_heads(*inputs, states, fresh, scale, layout, save, unit, part(out, many, 2))
    return out, unsort_rows(layout, final), kept


def _forward_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    fresh: bool,
    scale: float,
    layout: ChunkLayout,
    save: bool,
    unit: bool,
    out: torch.Tensor,
) -> Tuple[torch.Tensor, ...]:
    """Some heads; ``states`` are those before (zero if ``fresh``), and afterwards those after all tokens."""
    running, heads = states.contiguous().view(-1, *states.shape[2:]), states.shape[1]
    largest, dtype = largest_block(layout) * heads, states.dtype
    saved = Saved.empty(layout, states) if save else None
    scratch = Workspace(v, dtype, largest)
    wide = Workspace(v, wide_dtype(v.device, dtype), largest)
    found: List[Columns] = []
    for whole, group in zip(layout.wholes, layout.groups):
        sums, columns = load_columns(whole, g, beta, scale, dtype)
        found += [columns] if save else []
        for block in group:
            place, (at, kept) = block.within(whole, heads), _room(block, heads, saved, running, scratch)
            _forward_block(
                block, q, k, v, part(sums, place), columns.part(place), running, scale, fresh, unit, scratch,
                wide, at, kept, out,
            )  # fmt: skip
    if not states.is_contiguous():  # else they were worked on in place
        states.copy_(running.view(states.shape))
    return () if saved is None else (*saved, *Columns.joined(found, running))


def _room(
    block: Block, heads: int, saved: Optional[Saved], running: torch.Tensor, scratch: Workspace
) -> Tuple[Saved, Optional[torch.Tensor]]:
    """Where a block puts what it finds, saved or scratch, and where the states before its chunks, if anywhere."""
    states, matrices = running[block.states(heads)], block.size * heads
    sizes = Saved.sizes(block.chunk, *states.shape[1:])
    if saved is None:
        names = (*Saved._fields[1:-1], "products")  # whose place `weighted` takes: nobody asks for them again
        return Saved(states, *(scratch.get(name, matrices, *size) for name, size in zip(names, sizes))), None
    at = saved.part(block, heads)
    if at.complete:
        return at, at.states
    at.states.copy_(states)
    passing = {name: scratch.get(name, matrices, *size) for name, size in zip(Saved._fields[6:], sizes[5:])}
    return at._replace(**passing), None


def factors_of(
    both: torch.Tensor, columns: Columns, turned: torch.Tensor, meets: torch.Tensor, handed: torch.Tensor
) -> Factors:
    """How a block's tokens meet the state; fills ``meets`` and ``handed``."""
    torch.mul(both, columns.meet, out=meets)
    torch.mul(both[:, handed.shape[1] :], columns.hand, out=handed)
    return Factors(columns.whole, meets, handed, turned.transpose(1, 2))


def halves(tall: torch.Tensor, chunk: int) -> torch.Tensor:
    """``[M, 2C, D]`` as ``[M, 2, C, D]``: what belongs to queries, and to keys."""
    return tall.view(-1, 2, chunk, tall.shape[2])


def load_rows(block: Block, x: torch.Tensor, heads: int, out: torch.Tensor, pad: bool = False) -> torch.Tensor:
    """Fill ``out [M, C, D]`` from ``x [B, T, H, D]``, its heads repeated to ``heads``."""
    block.load(x, split_heads(out, heads), pad)
    return out


def load_both(block: Block, q: torch.Tensor, k: torch.Tensor, heads: int, both: torch.Tensor) -> torch.Tensor:
    """Fill ``both [M, 2C, K]``: queries over keys."""
    load_rows(block, q, heads, both[:, : block.chunk])
    load_rows(block, k, heads, both[:, block.chunk :])
    return both


def _forward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sums: torch.Tensor,
    columns: Columns,
    running: torch.Tensor,
    scale: float,
    fresh: bool,
    unit: bool,
    scratch: Workspace,
    wide: Workspace,
    at: Saved,
    kept: Optional[torch.Tensor],
    out: torch.Tensor,
) -> None:
    """One block: everything but the scan is one product over all its chunks."""
    heads, chunk = v.shape[2], block.chunk
    both = load_both(block, q, k, heads, at.both)
    values = load_rows(block, v, heads, scratch.get("values", *at.errors.shape))
    if unit:
        torch.linalg.vector_norm(both, dim=-1, keepdim=True, out=at.length).square_().add_(EPSILON).rsqrt_()
        both.mul_(at.length)
    keys = both[:, chunk:]

    pair_decay(sums, wide, at.pair)
    torch.bmm(both, keys.transpose(1, 2), out=at.products)
    halves(at.products, chunk).mul_(at.pair.unsqueeze(1))[:, 0].mul_(scale)
    weighted = torch.mul(at.products, columns.strength.transpose(1, 2), out=at.weighted)
    turned = at.turned.transpose(1, 2)  # the solver, too, hands over columns
    unit_lower_inverse(weighted[:, chunk:], turned, scratch)

    factors = factors_of(both, columns, at.turned, scratch.get("meets", *both.shape), at.handed)
    scan(block, heads, factors, values, running, at.errors, kept, fresh and block.wave == 0)
    values.baddbmm_(weighted[:, :chunk], at.errors)
    block.store(split_heads(values, heads), out)

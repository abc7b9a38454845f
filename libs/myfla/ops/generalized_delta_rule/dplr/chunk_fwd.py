"""Forward of the chunk form.

In the notation of `chunk_factors`, with ``A_ab .. A_qk`` the quarters of ``products``, ``S`` the incoming state of a
chunk and ``u_t = a_t^T S_{t-1}`` what each token reads before it writes::

    T  = (I - A_ab)^-1                        every chunk at once
    u  = T A_ak v + (T a') S                  chunk after chunk; a' is the upper half of left
    S' = whole S + hand^T [u; v]
    o  = q' S + [A_qb A_qk] [u; v]            every chunk at once

(the WY form of the generalised delta rule, arXiv 2503.14456 and 2406.06484).
"""

from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.triangular import unit_lower_inverse
from myfla.ops.common.tuning import keeps_states
from myfla.ops.common.workspace import Workspace, split_heads
from myfla.ops.generalized_delta_rule.dplr.chunk_factors import Factors, Inputs, chunk_factors, wide_dtype
from myfla.ops.generalized_delta_rule.dplr.chunk_scan import Way, scan
from myfla.utils.autocast import without_autocast


class Saved(NamedTuple):
    """What the backward needs beside the inputs, for all chunks in the layout's order."""

    states: torch.Tensor  # [M, K, V]   state before each chunk
    inverse: torch.Tensor  # [M, C, C]   T
    read: torch.Tensor  # [M, C, V]   u; not of short inputs, for which it is in written
    # What is found again is kept of short inputs only; what is not kept has M = 0.
    written: torch.Tensor  # [M, 2C, V]   u over v
    strong: torch.Tensor  # [M]   one for the matrices that went the other way, zero for the others
    rise: torch.Tensor  # of `Factors`, as all that follow
    left: torch.Tensor
    right: torch.Tensor
    hand: torch.Tensor
    whole: torch.Tensor
    products: torch.Tensor

    @staticmethod
    def sizes(chunk: int, key: int, value: int) -> Tuple[Tuple[int, ...], ...]:
        """The shapes of each without M."""
        first = (key, value), (chunk, chunk), (chunk, value), (2 * chunk, value), ()
        return (*first, *Factors.sizes(chunk, key))

    @classmethod
    def empty(cls, layout: ChunkLayout, heads: int, key: int, value: int, like: torch.Tensor) -> "Saved":
        """Unwritten tensors for all chunks."""
        total = layout.total * heads
        short = keeps_states(total * key * value, like.device)
        counts = [total, total, 0 if short else total] + (len(cls._fields) - 3) * [total if short else 0]
        sizes = cls.sizes(layout.chunk, key, value)
        return cls(*(like.new_empty((count,) + size) for count, size in zip(counts, sizes)))

    @property
    def complete(self) -> bool:
        """Whether nothing has to be found again."""
        return self.written.shape[0] == self.states.shape[0]

    @property
    def factors(self) -> Factors:
        return Factors(*self[-len(Factors._fields) :])


def largest_block(layout: ChunkLayout, heads: int) -> int:
    """Number of matrices in the largest block."""
    return heads * max([block.size for group in layout.groups for block in group], default=0)


@without_autocast
def chunk_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    layout: ChunkLayout,
    dtype: torch.dtype,
    save: bool,
) -> Tuple[torch.Tensor, torch.Tensor, Optional[Saved]]:
    """Outputs, final states and, if asked for, what the backward needs.

    Args:
        q, k, a, b, gk: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        initial_state: ``[N, H, K, V]`` or None.
        scale: factor on q.
        layout: how the tokens are cut into chunks.
        dtype: what is computed in, float32 or float64.
        save: keep what the backward needs.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, final states ``[N, H, K, V]`` in ``dtype``, `Saved` or None.
    """
    heads, key, value = k.shape[2], k.shape[3], v.shape[3]
    out = v.new_empty(v.shape, dtype=q.dtype)
    running = v.new_empty((layout.rows, heads, key, value), dtype=dtype)
    if initial_state is None:
        running.zero_()
    else:
        running.copy_(sort_rows(layout, initial_state))
    x = Inputs(q, k, v, a, b, gk)
    saved = Saved.empty(layout, heads, key, value, running) if save else None
    largest = largest_block(layout, heads)
    scratch = Workspace(v, dtype, largest)
    wide = Workspace(v, wide_dtype(v.device, dtype), largest)
    for group in layout.groups:
        for block in group:
            at = room(block, heads, saved, (key, value), scratch)
            _forward_block(block, x, running.view(-1, key, value), scale, scratch, wide, at, out)
    return out, unsort_rows(layout, running), saved


def room(
    block: Block, heads: int, saved: Optional[Saved], state: Tuple[int, int], scratch: Workspace
) -> Saved:
    """Where a block's tensors lie: among what is saved, or in scratch. ``state`` is ``(K, V)``."""
    size, span = block.size * heads, block.span(heads)
    kept = len(Saved._fields) * (None,) if saved is None else saved
    shapes = Saved.sizes(block.chunk, *state)
    return Saved(*(
        scratch.get(name, size, *shape) if x is None or not x.shape[0] else x[span]
        for name, shape, x in zip(Saved._fields, shapes, kept)
    ))  # fmt: skip


def load_written(block: Block, v: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """The lower half of ``written [M, 2C, V]``, filled with v."""
    values = written[:, block.chunk :]
    block.load(v, split_heads(values, v.shape[2]), pad=False)
    return values


def _forward_block(
    block: Block,
    x: Inputs,
    running: torch.Tensor,
    scale: float,
    scratch: Workspace,
    wide: Workspace,
    at: Saved,
    out: torch.Tensor,
) -> None:
    """One block: everything but the scan is one product over all its chunks."""
    heads, chunk, f = x.k.shape[2], block.chunk, at.factors
    size, key, value = at.states.shape
    strong = chunk_factors(block, x, scale, f, wide)
    at.strong.zero_()
    if strong is not None:
        at.strong[strong] = 1
    v = load_written(block, x.v, at.written)
    to_a, to_q = f.products.chunk(2, 1)
    a_b, a_k = to_a.chunk(2, 2)
    (a, q), (hand_b, hand_k) = f.left.chunk(2, 1), f.hand.chunk(2, 1)
    square = torch.neg(a_b, out=scratch.get("square", size, chunk, chunk))
    unit_lower_inverse(square, at.inverse, scratch)
    result = scratch.get("result", size, chunk, value)
    torch.bmm(a_k, v, out=result)
    torch.bmm(at.inverse, result, out=at.read)
    reader = torch.bmm(at.inverse, a, out=scratch.get("reader", size, chunk, key))
    stored = torch.bmm(hand_k.transpose(1, 2), v, out=scratch.get("stored", size, key, value))
    scan(block, heads, Way(f.whole, reader, hand_b, stored), running, at.states, at.read)
    at.written[:, :chunk].copy_(at.read)
    torch.bmm(q, at.states, out=result)
    result.baddbmm_(to_q, at.written)
    block.store(split_heads(result, heads), out)

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
from myfla.ops.common.scratch import Scratch, split_heads
from myfla.ops.common.triangular import unit_lower_inverse
from myfla.ops.generalized_delta_rule.dplr.chunk_factors import Inputs, chunk_factors, wide_dtype
from myfla.ops.generalized_delta_rule.dplr.chunk_scan import Way, scan
from myfla.utils.autocast import without_autocast


class Saved(NamedTuple):
    """What the backward needs beside the inputs, for all chunks in the layout's order."""

    states: torch.Tensor  # [M, K, V]   state before each chunk
    read: torch.Tensor  # [M, C, V]   u
    inverse: torch.Tensor  # [M, C, C]   T


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
    heads, key, value, chunk = k.shape[2], k.shape[3], v.shape[3], layout.chunk
    out = torch.empty(v.shape, dtype=q.dtype, device=v.device)
    if initial_state is None:
        running = v.new_zeros(layout.rows, heads, key, value, dtype=dtype)
    else:
        running = sort_rows(layout, initial_state.to(dtype))
        running = running.clone(memory_format=torch.contiguous_format)
    x, saved = Inputs(q, k, v, a, b, gk), None
    if save:
        shapes = ((key, value), (chunk, value), (chunk, chunk))
        total = layout.total * heads
        saved = Saved(*(torch.empty((total,) + shape, dtype=dtype, device=v.device) for shape in shapes))
    largest = largest_block(layout, heads)
    with Scratch(v, dtype, largest) as scratch, Scratch(v, wide_dtype(v.device, dtype), largest) as wide:
        for group in layout.groups:
            for block in group:
                at = _room(block, heads, saved, (key, value), scratch)
                _forward_block(block, x, running.view(-1, key, value), scale, scratch, wide, at, out)
    return out, unsort_rows(layout, running), saved


def _room(
    block: Block, heads: int, saved: Optional[Saved], state: Tuple[int, int], scratch: Scratch
) -> Saved:
    """Where a block puts what it finds: what is saved, or scratch. ``state`` is ``(K, V)``."""
    if saved is not None:
        return Saved(*(s[block.span(heads)] for s in saved))
    size, chunk = block.size * heads, block.chunk
    shapes = (state, (chunk, state[1]), (chunk, chunk))
    return Saved(*(scratch.get(name, size, *shape) for name, shape in zip(Saved._fields, shapes)))


def _forward_block(
    block: Block,
    x: Inputs,
    running: torch.Tensor,
    scale: float,
    scratch: Scratch,
    wide: Scratch,
    at: Saved,
    out: torch.Tensor,
) -> None:
    """One block: everything but the scan is one product over all its chunks."""
    heads, chunk, key, value = x.k.shape[2], block.chunk, x.k.shape[3], x.v.shape[3]
    f = chunk_factors(block, x, scale, scratch, wide)
    size = f.left.shape[0]
    written = scratch.get("written", size, 2 * chunk, value)
    block.load(x.v, split_heads(written, heads)[:, :, chunk:], pad=False)
    v = written[:, chunk:]
    square = torch.neg(f.products[:, :chunk, :chunk], out=scratch.get("square", size, chunk, chunk))
    unit_lower_inverse(square, out=at.inverse)
    result = scratch.get("result", size, chunk, value)
    torch.bmm(f.products[:, :chunk, chunk:], v, out=result)
    torch.bmm(at.inverse, result, out=at.read)
    reader = torch.bmm(at.inverse, f.left[:, :chunk], out=scratch.get("reader", size, chunk, key))
    stored = torch.bmm(f.hand[:, chunk:].transpose(1, 2), v, out=scratch.get("stored", size, key, value))
    scan(block, heads, Way(f.whole, reader, f.hand[:, :chunk], stored), running, at.states, at.read)
    written[:, :chunk].copy_(at.read)
    torch.bmm(f.left[:, chunk:], at.states, out=result)
    result.baddbmm_(f.products[:, chunk:], written)
    block.store(split_heads(result, heads), out)

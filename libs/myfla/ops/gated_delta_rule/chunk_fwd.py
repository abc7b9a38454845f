"""Forward of the chunk form.

For one chunk of one head, with rows for tokens, ``S`` the incoming state and the decays of `chunk_decay`::

    T     = (I + tril(beta * pair * K K^T, -1))^-1                         every chunk at once
    delta = T (beta V - (beta rise K) S)                                   chunk after chunk
    S'    = whole S + (fall K)^T delta
    O     = scale (rise Q) S + scale tril(pair * Q K^T) delta              every chunk at once

``delta`` holds what is written for each token: the error against the memory as it was, made consistent within the
chunk by ``T`` (the WY / UT form of DeltaNet, arXiv 2406.06484; with decay: Gated DeltaNet, arXiv 2412.06464).
"""

from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.scratch import Scratch, split_heads
from myfla.ops.common.triangular import unit_lower_inverse
from myfla.ops.gated_delta_rule.chunk_decay import Decay, chunk_decay
from myfla.utils.autocast import without_autocast


class Saved(NamedTuple):
    """What the backward needs beside the inputs, for all chunks in the layout's order."""

    states: torch.Tensor  # [M, K, V]   state before each chunk
    delta: torch.Tensor  # [M, C, V]
    inverse: torch.Tensor  # [M, C, C]  T
    products: torch.Tensor  # [M, 2C, C]  Q K^T above K K^T, without decay and scale


def largest_block(layout: ChunkLayout, heads: int) -> int:
    """Number of matrices in the largest block."""
    return heads * max([block.size for group in layout.groups for block in group], default=0)


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
) -> Tuple[torch.Tensor, torch.Tensor, Optional[Saved]]:
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

    Returns:
        o ``[B, T, HV, V]``, final states ``[N, HV, K, V]`` in ``dtype``, `Saved` or None.
    """
    heads, key, value, chunk = v.shape[2], k.shape[3], v.shape[3], layout.chunk
    out = torch.empty(v.shape, dtype=out_dtype, device=v.device)
    if initial_state is None:
        running = v.new_zeros(layout.rows, heads, key, value, dtype=dtype)
    else:
        running = sort_rows(layout, initial_state).to(dtype).clone(memory_format=torch.contiguous_format)
    flat = running.view(-1, key, value)
    scratch = Scratch(v, dtype, largest_block(layout, heads))
    saved = None
    if save:
        total = layout.total * heads
        shapes = ((key, value), (chunk, value), (chunk, chunk), (2 * chunk, chunk))
        saved = Saved(*(torch.empty((total,) + shape, dtype=dtype, device=v.device) for shape in shapes))
    for group in layout.groups:
        for block in group:
            if saved is None:
                size = block.size * heads
                at = Saved(
                    scratch.get("states", size, key, value),
                    scratch.get("delta", size, chunk, value),
                    scratch.get("inverse", size, chunk, chunk),
                    scratch.get("products", size, 2 * chunk, chunk),
                )
            else:
                at = Saved(*(x[block.span(heads)] for x in saved))
            _forward_block(block, q, k, v, g, beta, flat, scale, scratch, at, out)
    return out, unsort_rows(layout, running), saved


def load_queries_and_keys(block: Block, q: torch.Tensor, k: torch.Tensor, heads: int, scratch: Scratch) -> torch.Tensor:
    """``[M, 2C, K]``: a chunk's queries above its keys, so that one product serves both."""
    chunk = block.chunk
    both = scratch.get("qk", block.size * heads, 2 * chunk, k.shape[3])
    split = split_heads(both, heads)
    block.load(q, split[:, :, :chunk], pad=False)
    block.load(k, split[:, :, chunk:], pad=False)
    return both


def load_rows(block: Block, x: torch.Tensor, name: str, scratch: Scratch, pad: bool) -> torch.Tensor:
    """``[M, C, D]`` of one per-head tensor ``[B, T, HV, D]``."""
    heads = x.shape[2]
    buffer = scratch.get(name, block.size * heads, block.chunk, x.shape[3])
    block.load(x, split_heads(buffer, heads), pad)
    return buffer


def _forward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    running: torch.Tensor,
    scale: float,
    scratch: Scratch,
    at: Saved,
    out: torch.Tensor,
) -> None:
    """One block: everything but the scan is one product over all its chunks."""
    heads, chunk = v.shape[2], block.chunk
    both = load_queries_and_keys(block, q, k, heads, scratch)
    size, queries, keys = both.shape[0], both[:, :chunk], both[:, chunk:]
    strength = load_rows(block, beta.unsqueeze(-1), "beta", scratch, pad=True)
    written = load_rows(block, v, "v", scratch, pad=False).mul_(strength)
    decay = chunk_decay(block, g, scratch)

    torch.bmm(both, keys.transpose(1, 2), out=at.products)
    square = scratch.get("square", size, chunk, chunk)
    torch.mul(at.products[:, chunk:], decay.pair, out=square)
    unit_lower_inverse(square.mul_(strength), out=at.inverse)
    erased = torch.mul(keys, decay.rise * strength, out=scratch.get("erased", size, chunk, k.shape[3]))
    _scan(block, heads, running, decay, erased, keys.mul_(decay.fall), written, at)

    result = torch.bmm(queries.mul_(decay.rise * scale), at.states, out=written)
    torch.mul(at.products[:, :chunk], decay.pair, out=square)
    result.baddbmm_(square.tril_(), at.delta, alpha=scale)
    block.store(split_heads(result, heads), out)


def _scan(
    block: Block,
    heads: int,
    running: torch.Tensor,
    decay: Decay,
    erased: torch.Tensor,
    keys: torch.Tensor,
    written: torch.Tensor,
    at: Saved,
) -> None:
    """From chunk to chunk: fill ``at.states`` and ``at.delta``, leave the last states in ``running``."""
    first = block.rows[0] * heads
    waves = block.waves(heads)
    state = None
    for i, wave in enumerate(waves):
        rows = wave.stop - wave.start
        if state is None:
            at.states[wave].copy_(running[first : first + rows])
        state = at.states[wave]
        right = torch.baddbmm(written[wave], erased[wave], state, alpha=-1)
        torch.bmm(at.inverse[wave], right, out=at.delta[wave])
        follows = i + 1 < len(waves) and block.counts[i + 1] == block.counts[i]
        target = at.states[waves[i + 1]] if follows else running[first : first + rows]
        torch.mul(state, decay.whole[wave], out=target)
        target.baddbmm_(keys[wave].transpose(1, 2), at.delta[wave])
        state = target if follows else None

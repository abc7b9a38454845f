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
from myfla.ops.gated_delta_rule.chunk_decay import Columns, load_columns, pair_decay
from myfla.ops.gated_delta_rule.chunk_scan import Factors, scan
from myfla.utils.autocast import without_autocast


class Saved(NamedTuple):
    """What the backward needs beside the inputs, for all chunks in the layout's order."""

    states: torch.Tensor  # [M, K, V]  state before each chunk
    delta: torch.Tensor  # [M, C, V]
    inverse: torch.Tensor  # [M, C, C]  T
    pair: torch.Tensor  # [M, C, C]  lower triangular
    attend: torch.Tensor  # [M, C, C]  pair * Q K^T
    overlap: torch.Tensor  # [M, C, C]  pair * K K^T

    @staticmethod
    def sizes(chunk: int, key: int, value: int) -> Tuple[Tuple[int, int], ...]:
        """Rows and columns of each matrix."""
        return ((key, value), (chunk, value)) + 4 * ((chunk, chunk),)


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
    sizes, saved = Saved.sizes(chunk, key, value), None
    if save:
        total = layout.total * heads
        saved = Saved(*(torch.empty((total,) + size, dtype=dtype, device=v.device) for size in sizes))
    for whole, group in zip(layout.wholes, layout.groups):
        columns = load_columns(whole, g, beta, scale, dtype)
        for block in group:
            if saved is None:
                at = Saved(*(scratch.get(f, block.size * heads, *size) for f, size in zip(Saved._fields, sizes)))
            else:
                at = Saved(*(x[block.span(heads)] for x in saved))
            _forward_block(block, q, k, v, columns.part(block.within(whole, heads)), flat, scale, scratch, at, out)
    return out, unsort_rows(layout, running), saved


def load_rows(block: Block, x: torch.Tensor, name: str, heads: int, scratch: Scratch, pad: bool) -> torch.Tensor:
    """``[M, C, D]`` of one tensor ``[B, T, H, D]``, its heads repeated to ``heads``."""
    buffer = scratch.get(name, block.size * heads, block.chunk, x.shape[3])
    block.load(x, split_heads(buffer, heads), pad)
    return buffer


def _forward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    columns: Columns,
    running: torch.Tensor,
    scale: float,
    scratch: Scratch,
    at: Saved,
    out: torch.Tensor,
) -> None:
    """One block: everything but the scan is one product over all its chunks."""
    heads = v.shape[2]
    q = load_rows(block, q, "q", heads, scratch, pad=False)
    k = load_rows(block, k, "k", heads, scratch, pad=False)
    v = load_rows(block, v, "v", heads, scratch, pad=False)

    pair = pair_decay(columns.sums, at.pair)
    torch.bmm(q, k.transpose(1, 2), out=at.attend).mul_(pair)
    torch.bmm(k, k.transpose(1, 2), out=at.overlap).mul_(pair)
    system = torch.mul(at.overlap, columns.strength, out=scratch.get("system", *at.overlap.shape))
    unit_lower_inverse(system, out=at.inverse)

    erased = torch.mul(k, columns.erase, out=scratch.get("erased", *k.shape))
    written, handed = v.mul_(columns.strength), k.mul_(columns.fall)
    scan(block, heads, Factors(columns.whole, erased, handed, at.inverse), written, running, at.states, at.delta)

    result = torch.bmm(q.mul_(columns.read), at.states, out=v)
    result.baddbmm_(at.attend, at.delta, alpha=scale)
    block.store(split_heads(result, heads), out)

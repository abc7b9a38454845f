"""What is decided before anything is computed: chunks, blocks, heads, and where what is kept lies."""

from typing import Optional

import torch

from myfla.ops._delta.families.base import Family, HeadGroup, Plan, Tensors
from myfla.ops._delta.layout import ChunkLayout
from myfla.ops._delta.tuning import block_chunks, chunk_tokens, keeps_more, states_together
from myfla.ops._delta.workspace import APART, BlockShapes, Parts, Shapes

__all__ = ["most_kept", "plan_call"]


def plan_call(
    family: Family, x: Tensors, scale: float, l2norm: bool, cu_seqlens: Optional[torch.Tensor], sequences: int,
    chunk_size: Optional[int], dtype: torch.dtype, out_dtype: torch.dtype, for_graph: bool = False,
) -> Plan:
    """Cut the tokens into chunks, and these into blocks whose buffers and states fit the device's caches."""
    (batch, tokens, heads, key), (value_heads, value), device = x[1].shape, x[2].shape[2:], x[1].device
    typical = tokens if cu_seqlens is None else -(-tokens // max(sequences, 1))
    chunk = chunk_size or min(family.largest_chunk, chunk_tokens(typical, key, value, device))
    group = value_heads // heads
    states = states_together(key * value, device)
    together = max(1, min(heads, states // group))
    chunks = block_chunks(together * group * chunk * max(key, value), device)
    layout = ChunkLayout(batch, tokens, chunk, cu_seqlens, device, chunks, states // (together * group))
    shapes, matrices = _with_engine(family, chunk, key, value), layout.total * value_heads
    always = _numbers(shapes.kept) + key * value
    # What a graph keeps depends on nothing but sizes.
    states_too = for_graph or keeps_more(matrices * always, device)
    tokens_too = states_too and not for_graph and keeps_more(matrices * (always + _numbers(shapes.short)), device)
    kept, groups, start = {**shapes.kept, **(shapes.short if tokens_too else {})}, [], 0
    for first in range(0, heads, together):
        last = min(first + together, heads)
        count = (last - first) * group
        parts = Parts(kept, layout.total * count, start)
        chunks = layout.total if states_too else layout.openings
        before = Parts({"states": (key, value)}, chunks * count, parts.stop)
        groups.append(HeadGroup(slice(first, last), slice(first * group, last * group), count, parts, before))
        start = before.stop
    largest = max([block.size for blocks in layout.groups for block in blocks], default=0) * together * group
    return Plan(
        family, scale, l2norm, layout, dtype, out_dtype, states_too, tokens_too, (value_heads, key, value), shapes,
        groups, start, largest,
    )  # fmt: skip


def _with_engine(family: Family, chunk: int, key: int, value: int) -> BlockShapes:
    """The family's tensors and the engine's own."""
    own, rows = family.shapes(chunk, key, value), 2 * chunk if family.corrects else chunk
    solved: Shapes = {"A_inv_T": (chunk, chunk)} if family.corrects else {}
    grads: Shapes = {"out": (rows, value), "dv_new": (chunk, value), "dqk_in": (rows, key), "dk_out": (chunk, key)}
    if family.corrects:
        grads["dv_in"] = (chunk, value)
    return own._replace(kept={"v_new": (chunk, value), **solved, **own.kept}, backward={**grads, **own.backward})


def most_kept(family: Family, chunk: int, key: int, value: int, chunks: int, heads: int) -> int:
    """Numbers of what ``for_graph`` calls of so many chunks and heads keep, at most."""
    kept = _with_engine(family, chunk, key, value).kept
    return chunks * heads * (_numbers(kept) + key * value) + (16 + APART) * (len(kept) + 1) * heads


def _numbers(shapes: Shapes) -> int:
    """Of a matrix of each."""
    return sum([rows * columns for rows, columns in shapes.values()])

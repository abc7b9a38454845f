"""The plan of a call, made before anything is computed: chunks, blocks, heads, and where each residual lies.

The sizes of chunks and blocks change speed and rounding, never meaning.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.families.base import Family, Options, Tensors
from myfla.ops._delta.layout import ChunkLayout
from myfla.ops._delta.workspace import PADDING, BlockShapes, Parts, Shapes

__all__ = ["HeadGroup", "Plan", "graph_chunk", "max_residuals", "plan_call"]

CPU_BLOCK = 128 * 1024
"""Elements of one buffer per thread (512 kB of float32): a handful of such buffers stay in a core's cache."""

CPU_STATES = 128 * 1024
"""Elements per thread of the states that are updated together (512 kB of float32): half of a core's second-level
cache."""

GPU_BLOCK = 64 * 1024 * 1024
"""Elements of either on a GPU, where large products matter and caches do not."""

MAX_RESIDUALS = 15 << 19
"""Elements of all that is saved for the backward (30 MB of float32) up to which what could be recomputed is saved too:
for a tensor of 32 MB or more the C library requests new memory at every call, which takes as long as recomputing."""


class HeadGroup(NamedTuple):
    """Heads that are computed together."""

    key_heads: slice  # of queries and keys
    value_heads: slice
    heads: int  # how many value heads
    parts: Parts  # where their residuals lie among all
    states: Parts  # and their states


class Plan(NamedTuple):
    """Options of a call for the forward and the backward pass."""

    family: Family
    options: Options
    layout: ChunkLayout  # how the tokens are cut into chunks
    dtype: torch.dtype  # of sums and states
    out_dtype: torch.dtype
    save_states: bool  # save the states before every chunk, not only before every block
    save_recomputable: bool  # save what is `BlockShapes.recomputable`
    sizes: Tuple[int, int, int]  # HV, K, V
    shapes: BlockShapes
    groups: List[HeadGroup]
    residuals: int  # elements of all that is saved for the backward
    largest: int  # matrices of the largest block


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
    shapes, matrices = _engine_shapes(family, chunk, key, value), layout.total * value_heads
    saved, elements = dict(shapes.residuals), _elements(shapes.residuals) + key * value
    # What a graph saves depends on sizes only.
    save_states = for_graph or saves_recomputable(matrices * elements, device)
    elements += _elements(shapes.recomputable)
    save_recomputable = save_states and not for_graph and saves_recomputable(matrices * elements, device)
    if save_recomputable:
        saved.update(shapes.recomputable)
    groups: List[HeadGroup] = []
    start = 0
    for first in range(0, heads, together):
        last = min(first + together, heads)
        count = (last - first) * group
        parts = Parts(saved, layout.total * count, start)
        chunks = layout.total if save_states else layout.block_states
        before = Parts({"states": (key, value)}, chunks * count, parts.stop)
        groups.append(HeadGroup(slice(first, last), slice(first * group, last * group), count, parts, before))
        start = before.stop
    largest = max([block.size for blocks in layout.groups for block in blocks], default=0) * together * group
    return Plan(
        family, Options(scale, l2norm), layout, dtype, out_dtype, save_states, save_recomputable,
        (value_heads, key, value), shapes, groups, start, largest,
    )  # fmt: skip


def _engine_shapes(family: Family, chunk: int, key: int, value: int) -> BlockShapes:
    """Shapes of the family's tensors and of the engine's."""
    own, rows = family.shapes(chunk, key, value), 2 * chunk if family.corrects else chunk
    solved: Shapes = {"A_inv_T": (chunk, chunk)} if family.corrects else {}
    grads: Shapes = {"out": (rows, value), "dv_new": (chunk, value), "dqk_in": (rows, key), "dk_out": (chunk, key)}
    if family.corrects:
        grads["dv_in"] = (chunk, value)
    saved = {"v_new": (chunk, value), **solved, **own.residuals}
    return own._replace(residuals=saved, backward={**grads, **own.backward})


def max_residuals(family: Family, chunk: int, key: int, value: int, chunks: int, heads: int) -> int:
    """The largest number of elements that ``for_graph`` calls with this many chunks and heads save."""
    saved = _engine_shapes(family, chunk, key, value).residuals
    return chunks * heads * (_elements(saved) + key * value) + (16 + PADDING) * (len(saved) + 1) * heads


def _elements(shapes: Shapes) -> int:
    """Elements of one matrix of each name."""
    return sum([rows * columns for rows, columns in shapes.values()])


def chunk_tokens(tokens: int, key: int, value: int, device: torch.device) -> int:
    """Tokens in a chunk, between 16 and 64, and not much more than there are.

    Within a chunk the work grows with C, and small products run at a lower rate; these sizes were the fastest on CPUs.

    Args:
        tokens: length of a typical sequence.
        key, value: head sizes.
        device: where it runs.
    """
    if tokens <= 16:
        return max(tokens, 1)
    if device.type != "cpu":
        return 64
    size = max(key, value)
    wanted = 16 if size <= 32 else 32 if size <= 128 else 64
    while wanted > 16 and wanted >= 2 * tokens:
        wanted //= 2
    return wanted


def graph_chunk(family: Family, x: Tensors) -> int:
    """Tokens in a chunk of a compiled graph, which serves every length."""
    return min(family.largest_chunk, chunk_tokens(1 << 20, x[1].shape[3], x[2].shape[3], x[2].device))


def block_chunks(elements: int, device: torch.device) -> int:
    """The number of chunks in a block.

    Args:
        elements: elements of one chunk of all heads in the largest buffer.
        device: where it runs.
    """
    budget = CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK
    return max(1, budget // max(elements, 1))


def states_together(elements: int, device: torch.device) -> int:
    """The number of states that are updated together; sequences and heads are independent.

    Args:
        elements: elements of one state.
        device: where it runs.
    """
    budget = CPU_STATES * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK
    return max(1, budget // max(elements, 1))


def saves_recomputable(elements: int, device: torch.device) -> bool:
    """Whether training saves what could be recomputed: the states before every chunk, not only before every block.

    Args:
        elements: elements of all tensors that would be saved.
        device: where it runs; on a GPU one block is almost the whole batch.
    """
    return device.type == "cpu" and elements <= MAX_RESIDUALS

"""The chunk form of every family, in both directions: head by head, block by block.

A block is what stays in the processor's caches. Its family prepares it; the triangular system, the way from chunk to
chunk and the outputs are the same for all (`contract`).
"""

from typing import List, Optional, Tuple

import torch

from myfla.ops._delta.chunk.contract import ChunkGrads
from myfla.ops._delta.chunk.inverse import unit_lower_inverse
from myfla.ops._delta.chunk.residuals import Residuals, head_groups
from myfla.ops._delta.chunk.scan import ScanGrads, recompute_states, scan, scan_bwd
from myfla.ops._delta.families.base import Plan, Tensors
from myfla.ops._delta.layout import Block, sort_rows, unsort_rows
from myfla.ops._delta.workspace import Buffers, Workspace, part, split_heads
from myfla.utils.autocast import without_autocast

__all__ = ["chunk_bwd", "chunk_fwd"]


@without_autocast
def chunk_fwd(
    v: torch.Tensor, x: Tensors, initial_state: Optional[torch.Tensor], plan: Plan,
    kept: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Outputs and final states.

    Args:
        v: ``[B, T, HV, V]``, one of x.
        x: the family's tensors.
        initial_state: ``[N, HV, K, V]`` or None.
        plan: how.
        kept: the tensor of `Residuals`, which is filled; None if there is no backward.

    Returns:
        o ``[B, T, HV, V]`` in ``plan.out_dtype``, final states ``[N, HV, K, V]`` in ``plan.dtype``.
    """
    heads, key, value = v.shape[2], x[1].shape[3], v.shape[3]
    out = v.new_empty(v.shape, dtype=plan.out_dtype)
    final = _states(initial_state, plan, (heads, key, value), v)
    residuals, groups = Residuals(plan, x, kept), head_groups(plan, x[1].shape[2], heads)
    workspace = Workspace(v, plan.dtype, largest_block(plan) * groups[0][1].stop)
    for few, many in groups:
        states, mine = part(final, many, 1), [part(t, few if t.shape[2] != heads else many, 2) for t in x]
        running, count = states.contiguous().view(-1, key, value), states.shape[1]
        parts = residuals.of_heads(many.start)
        for group in plan.layout.groups:
            for block in group:
                here = residuals.of_block(parts, block, count)
                buffers = Buffers(workspace, block.size * count, here)
                fresh = initial_state is None and block.wave == 0
                _forward_block(block, mine, plan, buffers, running, fresh, part(out, many, 2))
        if not states.is_contiguous():  # else they were worked on in place
            states.copy_(running.view(states.shape))
    return out, unsort_rows(plan.layout, final)


def _forward_block(
    block: Block, x: Tensors, plan: Plan, buffers: Buffers, running: torch.Tensor, fresh: bool, out: torch.Tensor,
) -> None:
    heads, chunk, value = out.shape[2], block.chunk, out.shape[3]
    c, A_inv = plan.family.prepare(block, x, plan, buffers), None
    v_new, states = buffers.get("v_new", chunk, value), buffers.kept.get("states")
    if c.system is None:
        v_new.copy_(c.v_in)
    else:
        A_inv = buffers.get("A_inv_T", chunk, chunk).transpose(1, 2)  # the solver, too, hands over columns
        unit_lower_inverse(c.system, A_inv, buffers.workspace)
    if states is not None and not plan.keep_states:
        states.copy_(running[block.states(heads)])
        states = None
    o = c.v_in  # a wave's values have been read before its outputs are written
    scan(block, heads, c, A_inv, running, v_new, o, states, fresh)
    o.baddbmm_(c.A_qk, v_new)
    block.store(split_heads(o, heads), out)


@without_autocast
def chunk_bwd(
    do: torch.Tensor, dfinal: Optional[torch.Tensor], x: Tensors, plan: Plan, kept: torch.Tensor, fresh: bool
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """Gradients of x (each in its own dtype) and of the initial state.

    Args:
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[N, HV, K, V]`` gradient of the final states, or None.
        x, plan: as given to `chunk_fwd`.
        kept: what it filled.
        fresh: whether there was no initial state; what is returned as its gradient is then undefined.
    """
    heads, key, value = do.shape[2], x[1].shape[3], do.shape[3]
    grads = [t.new_empty(t.shape) for t in x]
    dinitial = _states(dfinal, plan, (heads, key, value), do)
    residuals, groups = Residuals(plan, x, kept), head_groups(plan, x[1].shape[2], heads)
    workspace = Workspace(do, plan.dtype, largest_block(plan) * groups[0][1].stop)
    for few, many in groups:
        dstates, mine, written = part(dinitial, many, 1), [], []
        for t, grad in zip(x, grads):
            at = few if t.shape[2] != heads else many
            mine.append(part(t, at, 2))
            written.append(part(grad, at, 2))
        running, count = dstates.contiguous().view(-1, key, value), dstates.shape[1]
        parts = residuals.of_heads(many.start)
        for group in plan.layout.groups:
            for block in reversed(group):
                here = residuals.of_block(parts, block, count)
                buffers = Buffers(workspace, block.size * count, here, again=True)
                _backward_block(
                    block, mine, plan, buffers, running, fresh and block.wave == 0,
                    dfinal is None and block is group[-1], part(do, many, 2), written,
                )  # fmt: skip
        if not dstates.is_contiguous():  # else they were worked on in place
            dstates.copy_(running.view(dstates.shape))
    return grads, unsort_rows(plan.layout, dinitial)


def _backward_block(
    block: Block, x: Tensors, plan: Plan, buffers: Buffers, running: torch.Tensor, fresh: bool, last: bool,
    do: torch.Tensor, grads: Tensors,
) -> None:
    heads, chunk, (key, value) = do.shape[2], block.chunk, running.shape[1:]
    c, v_new, states = plan.family.prepare(block, x, plan, buffers), buffers.kept["v_new"], buffers.kept["states"]
    if not plan.keep_states:
        first, states = states, buffers.temporary("states", key, value)
        states[: first.shape[0]].copy_(first)
        recompute_states(block, heads, c, v_new, states)
    rows, A_inv_T = c.qk_in.shape[1], None if c.system is None else buffers.kept["A_inv_T"]
    out = buffers.temporary("out", rows, value)
    above = out[:, :chunk]
    block.load(do, split_heads(above, heads))
    dv_new = torch.bmm(c.A_qk.transpose(1, 2), above, out=buffers.temporary("dv_new", chunk, value))
    dv_in = dv_new if A_inv_T is None else buffers.temporary("dv_in", chunk, value)
    after = None if c.kv is None else buffers.temporary("after", key, value)
    d = ScanGrads(
        out, dv_new, dv_in, buffers.temporary("dqk_in", rows, key), buffers.temporary("dk_out", chunk, key),
        torch.empty_like(c.g_last), after,
    )  # fmt: skip
    room = buffers.workspace.get("room", block.counts[0] * heads, key, value)
    scan_bwd(block, heads, c, A_inv_T, states, v_new, running, d, room, fresh, last)
    found = ChunkGrads(out, dv_in, d.qk_in, d.k_out, d.g_last, after, v_new)
    plan.family.prepare_bwd(block, x, plan, buffers, c, found, grads)


def largest_block(plan: Plan) -> int:
    """Number of chunks in the largest block."""
    return max((block.size for group in plan.layout.groups for block in group), default=0)


def _states(given: Optional[torch.Tensor], plan: Plan, sizes: Tuple[int, int, int], like: torch.Tensor) -> torch.Tensor:
    """``[N, HV, K, V]`` of ours alone, in the layout's order; zeros if there is none."""
    shape = (plan.layout.rows, *sizes)
    if given is None:
        return like.new_zeros(shape, dtype=plan.dtype)
    return like.new_empty(shape, dtype=plan.dtype).copy_(sort_rows(plan.layout, given))

"""The chunk form of every family, in both directions: head by head, block by block.

A block is what stays in the processor's caches. Its family prepares it; the triangular system, the way from chunk to
chunk and the outputs are the same for all (`contract`).
"""

from typing import List, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.chunk.contract import ChunkGrads
from myfla.ops._delta.chunk.inverse import unit_lower_inverse
from myfla.ops._delta.chunk.scan import ScanGrads, recompute_states, scan, scan_bwd
from myfla.ops._delta.families.base import HeadGroup, Plan, Tensors
from myfla.ops._delta.layout import Block, sort_rows, unsort_rows
from myfla.ops._delta.workspace import Buffers, Workspace
from myfla.utils.autocast import without_autocast

__all__ = ["chunk_bwd", "chunk_fwd"]


@without_autocast
def chunk_fwd(
    v: torch.Tensor, x: Tensors, initial_state: Optional[torch.Tensor], plan: Plan, kept: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Outputs and final states.

    Args:
        v: ``[B, T, HV, V]``, one of x.
        x: the family's tensors.
        initial_state: ``[N, HV, K, V]`` or None.
        plan: how.
        kept: ``[plan.kept]``, which is filled; None if there is no backward.

    Returns:
        o ``[B, T, HV, V]`` in ``plan.out_dtype``, final states ``[N, HV, K, V]`` in ``plan.dtype``.
    """
    shapes, (heads, key, value) = plan.shapes, plan.sizes
    out = v.new_empty(v.shape, dtype=plan.out_dtype)
    final = _states(initial_state, plan, v)
    own = dict(shapes.forward)
    if kept is None or not plan.keep_tokens:
        own.update(shapes.short)
    if kept is None:
        own.update(shapes.kept)
    workspace = Workspace(v, plan.dtype, own, plan.largest)
    for group in plan.groups:
        *mine, o = _of_group(group, heads, (*x, out))
        states = final[:, group.value_heads]
        running = states.contiguous().view(-1, key, value)
        for blocks in plan.layout.groups:
            for block in blocks:
                buffers = _buffers(workspace, block, group, plan, kept, False)
                _forward_block(block, mine, plan, buffers, running, initial_state is None and block.wave == 0, o)
        if not states.is_contiguous():  # else they were worked on in place
            states.copy_(running.view(states.shape))
    return out, unsort_rows(plan.layout, final)


def _forward_block(
    block: Block, x: Tensors, plan: Plan, buffers: Buffers, running: torch.Tensor, fresh: bool, out: torch.Tensor
) -> None:
    heads, c, v_new, A_inv = out.shape[2], plan.family.prepare(block, x, plan, buffers), buffers["v_new"], None
    states = buffers.get("states")
    if c.system is None:
        v_new.copy_(c.v_in)
    else:
        A_inv = buffers["A_inv_T"].transpose(1, 2)  # the solver, too, hands over columns
        unit_lower_inverse(c.system, A_inv)
    if states is not None and not plan.keep_states:
        states.copy_(running[block.states(heads)])
        states = None
    o = c.v_in  # a wave's values have been read before its outputs are written
    scan(block, heads, c, A_inv, running, v_new, o, states, fresh)
    block.store(o.baddbmm_(c.A_qk, v_new), out)


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
    shapes, (heads, key, value) = plan.shapes, plan.sizes
    grads = [t.new_empty(t.shape) for t in x]
    dinitial = _states(dfinal, plan, do)
    own = dict(shapes.backward)
    if not plan.keep_tokens:
        own.update(shapes.short)
    if not plan.keep_states:
        own["states"] = (key, value)
    workspace = Workspace(do, plan.dtype, own, plan.largest, shapes.over)
    for group in plan.groups:
        *mine, dout = _of_group(group, heads, (*x, do))
        written = _of_group(group, heads, grads)
        dstates = dinitial[:, group.value_heads]
        running = dstates.contiguous().view(-1, key, value)
        for blocks in plan.layout.groups:
            for block in reversed(blocks):
                buffers = _buffers(workspace, block, group, plan, kept, True)
                last = dfinal is None and block is blocks[-1]
                _backward_block(block, mine, plan, buffers, running, fresh and block.wave == 0, last, dout, written)
        if not dstates.is_contiguous():  # else they were worked on in place
            dstates.copy_(running.view(dstates.shape))
    return grads, unsort_rows(plan.layout, dinitial)


def _backward_block(
    block: Block, x: Tensors, plan: Plan, buffers: Buffers, running: torch.Tensor, fresh: bool, last: bool,
    do: torch.Tensor, grads: Tensors,
) -> None:
    heads, c = do.shape[2], plan.family.prepare(block, x, plan, buffers)
    v_new, states, out, dv_new = buffers["v_new"], buffers["states"], buffers["out"], buffers["dv_new"]
    if not plan.keep_states:
        recompute_states(block, heads, c, v_new, states)
    torch.bmm(c.A_qk.transpose(1, 2), block.load(do, out[:, : block.chunk]), out=dv_new)
    d = ScanGrads(
        out, dv_new, buffers.get("dv_in", dv_new), buffers["dqk_in"], buffers["dk_out"], torch.empty_like(c.g_last),
        buffers.get("after"),
    )  # fmt: skip
    scan_bwd(block, heads, c, buffers.get("A_inv_T"), states, v_new, running, d, fresh, last)
    found = ChunkGrads(out, d.v_in, d.qk_in, d.k_out, d.g_last, d.after, v_new)
    plan.family.prepare_bwd(block, x, plan, buffers, c, found, grads)


def _buffers(
    workspace: Workspace, block: Block, group: HeadGroup, plan: Plan, kept: Optional[torch.Tensor], again: bool
) -> Buffers:
    """What a block works with: its part of what is kept, and of the workspace the rest."""
    heads = group.heads
    buffers = Buffers(workspace.views(block.size * heads))
    buffers.inference, buffers.backward, buffers.known = kept is None, again, again and plan.keep_tokens
    if kept is None:
        return buffers
    buffers.update(group.parts.views(kept, block.size * heads, block.start * heads))
    if plan.keep_states:
        buffers.update(group.states.views(kept, block.size * heads, block.start * heads))
        return buffers
    opening = group.states.views(kept, block.counts[0] * heads, block.entered * heads)
    if again:
        buffers["states"][: block.counts[0] * heads].copy_(opening["states"])
    else:
        buffers.update(opening)
    return buffers


def _of_group(group: HeadGroup, heads: int, tensors: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """The group's heads of tensors ``[B, T, heads, ...]``."""
    return [t[:, :, group.value_heads if t.shape[2] == heads else group.key_heads] for t in tensors]


def _states(given: Optional[torch.Tensor], plan: Plan, like: torch.Tensor) -> torch.Tensor:
    """``[N, HV, K, V]`` of ours alone, in the layout's order; zeros if there is none."""
    shape = (plan.layout.rows, *plan.sizes)
    if given is None:
        return like.new_zeros(shape, dtype=plan.dtype)
    return like.new_empty(shape, dtype=plan.dtype).copy_(sort_rows(plan.layout, given))

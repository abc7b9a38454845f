"""The forward and backward pass of the chunk form for all families, head by head and block by block.

A block is small enough to stay in the processor's caches. The family prepares it; the triangular system, the scan over
chunks and the outputs are the same for all families (`recurrence`).
"""

from typing import List, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.chunk.plan import HeadGroup, Plan
from myfla.ops._delta.chunk.recurrence import ChunkGrads, ScanGrads, recompute_states, scan, scan_bwd
from myfla.ops._delta.chunk.triangular import unit_lower_inverse
from myfla.ops._delta.families.base import Tensors
from myfla.ops._delta.layout import Block, sort_rows, unsort_rows
from myfla.ops._delta.workspace import Buffers, Workspace
from myfla.utils.dtypes import without_autocast

__all__ = ["chunk_bwd", "chunk_fwd"]


@without_autocast
def chunk_fwd(
    v: torch.Tensor, x: Tensors, initial_state: Optional[torch.Tensor], plan: Plan, residuals: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Outputs and final states.

    Args:
        v: ``[B, T, HV, V]``, one of x.
        x: the family's tensors.
        initial_state: ``[N, HV, K, V]`` or None.
        plan: chunks, blocks and options.
        residuals: ``[plan.residuals]``, written; None if there is no backward.

    Returns:
        o ``[B, T, HV, V]`` in ``plan.out_dtype``, final states ``[N, HV, K, V]`` in ``plan.dtype``.
    """
    shapes, (heads, key, value) = plan.shapes, plan.sizes
    out = v.new_empty(v.shape, dtype=plan.out_dtype)
    final = _states(initial_state, plan, v)
    own = dict(shapes.forward)
    if residuals is None or not plan.save_recomputable:
        own.update(shapes.recomputable)
    if residuals is None:
        own.update(shapes.residuals)
    workspace = Workspace(v, plan.dtype, own, plan.largest)
    for group in plan.groups:
        *inputs, o = _of_group(group, heads, (*x, out))
        states = final[:, group.value_heads]
        running = states.contiguous().view(-1, key, value)
        for blocks in plan.layout.groups:
            for block in blocks:
                buffers = _buffers(workspace, block, group, plan, residuals, False)
                zero_state = initial_state is None and block.first_step == 0
                _forward_block(block, inputs, plan, buffers, running, zero_state, o)
        if not states.is_contiguous():  # else they have been updated in place
            states.copy_(running.view(states.shape))
    return out, unsort_rows(plan.layout.order, final)


def _forward_block(
    block: Block, x: Tensors, plan: Plan, buffers: Buffers, running: torch.Tensor, zero_state: bool, out: torch.Tensor
) -> None:
    heads, c, v_new, A_inv = out.shape[2], plan.family.prepare(block, x, plan.options, buffers), buffers["v_new"], None
    states = buffers.get("states")
    if c.system is None:
        v_new.copy_(c.v_in)
    else:
        A_inv = buffers["A_inv_T"].transpose(1, 2)  # the solver's result is in columns, too
        unit_lower_inverse(c.system, A_inv)
    if states is not None and not plan.save_states:
        states.copy_(running[block.states(heads)])
        states = None
    o = c.v_in  # a step's values have been read before its outputs are written
    scan(block, heads, c, A_inv, running, v_new, o, states, zero_state)
    block.store(o.baddbmm_(c.A_qk, v_new), out)


@without_autocast
def chunk_bwd(
    do: torch.Tensor, dfinal: Optional[torch.Tensor], x: Tensors, plan: Plan, residuals: torch.Tensor, zero_state: bool
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """Gradients of x (each in its own dtype) and of the initial state.

    Args:
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[N, HV, K, V]`` gradient of the final states, or None.
        x, plan: as given to `chunk_fwd`.
        residuals: as `chunk_fwd` has written them.
        zero_state: whether there was no initial state; what is returned as its gradient is then undefined.
    """
    shapes, (heads, key, value) = plan.shapes, plan.sizes
    grads = [t.new_empty(t.shape) for t in x]
    dinitial = _states(dfinal, plan, do)
    own = dict(shapes.backward)
    if not plan.save_recomputable:
        own.update(shapes.recomputable)
    if not plan.save_states:
        own["states"] = (key, value)
    workspace = Workspace(do, plan.dtype, own, plan.largest, shapes.aliases)
    for group in plan.groups:
        *inputs, dout = _of_group(group, heads, (*x, do))
        written = _of_group(group, heads, grads)
        dstates = dinitial[:, group.value_heads]
        running = dstates.contiguous().view(-1, key, value)
        for blocks in plan.layout.groups:
            for block in reversed(blocks):
                buffers = _buffers(workspace, block, group, plan, residuals, True)
                zeros = zero_state and block.first_step == 0, dfinal is None and block is blocks[-1]
                _backward_block(block, inputs, plan, buffers, running, zeros, dout, written)
        if not dstates.is_contiguous():  # else they have been updated in place
            dstates.copy_(running.view(dstates.shape))
    return grads, unsort_rows(plan.layout.order, dinitial)


def _backward_block(
    block: Block, x: Tensors, plan: Plan, buffers: Buffers, running: torch.Tensor, zeros: Tuple[bool, bool],
    do: torch.Tensor, grads: Tensors,
) -> None:
    heads, c = do.shape[2], plan.family.prepare(block, x, plan.options, buffers)
    v_new, states, out, dv_new = buffers["v_new"], buffers["states"], buffers["out"], buffers["dv_new"]
    if not plan.save_states:
        recompute_states(block, heads, c, v_new, states)
    torch.bmm(c.A_qk.transpose(1, 2), block.load(do, out[:, : block.chunk]), out=dv_new)
    d = ScanGrads(
        out, dv_new, buffers.get("dv_in", dv_new), buffers["dqk_in"], buffers["dk_out"], torch.empty_like(c.g_last),
        buffers.get("after"),
    )  # fmt: skip
    scan_bwd(block, heads, c, buffers.get("A_inv_T"), states, v_new, running, d, *zeros)
    found = ChunkGrads(out, d.v_in, d.qk_in, d.k_out, d.g_last, d.after, v_new)
    plan.family.prepare_bwd(block, x, plan.options, buffers, c, found, grads)


def _buffers(
    workspace: Workspace, block: Block, group: HeadGroup, plan: Plan, residuals: Optional[torch.Tensor], backward: bool
) -> Buffers:
    """The buffers of a block: its part of the residuals, and the workspace for the rest."""
    heads = group.heads
    buffers = Buffers(workspace.views(block.size * heads))
    buffers.inference, buffers.backward = residuals is None, backward
    buffers.has_recomputable = backward and plan.save_recomputable
    if residuals is None:
        return buffers
    buffers.update(group.parts.views(residuals, block.size * heads, block.start * heads))
    if plan.save_states:
        buffers.update(group.states.views(residuals, block.size * heads, block.start * heads))
        return buffers
    before = group.states.views(residuals, block.counts[0] * heads, block.first_state * heads)
    if backward:
        buffers["states"][: block.counts[0] * heads].copy_(before["states"])
    else:
        buffers.update(before)
    return buffers


def _of_group(group: HeadGroup, heads: int, tensors: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """The group's heads of tensors ``[B, T, heads, ...]``."""
    return [t[:, :, group.value_heads if t.shape[2] == heads else group.key_heads] for t in tensors]


def _states(given: Optional[torch.Tensor], plan: Plan, like: torch.Tensor) -> torch.Tensor:
    """A copy of the state ``[N, HV, K, V]`` that may be overwritten, in the layout's order; zeros if there is none."""
    shape = (plan.layout.rows, *plan.sizes)
    if given is None:
        return like.new_zeros(shape, dtype=plan.dtype)
    return like.new_empty(shape, dtype=plan.dtype).copy_(sort_rows(plan.layout.order, given))

"""Backward of the chunk form, by hand.

In the notation of `chunk_fwd`, for one chunk, with ``do`` and the gradient ``dS'`` of the outgoing state::

    g        = T^T (A_qb^T do + b^ dS')            gradient of what u is made of; b^ and k^ are the halves of hand
    dS       = whole dS' + left^T [g; do]
    dv       = [A_ak; A_qk]^T [g; do] + k^ dS'
    dpairs   = [g; do] [u; v]^T, cut like products: gradient of products
    dleft    = dpairs right + [g; do] S^T
    dright   = dpairs^T left + whole ([u; v] dS'^T)

and from these, token by token, the gradients of a, q, b and k. A step's log decay lies on every path that crosses it.
Its gradient is summed from what such paths contribute: reads of the incoming state by tokens from it on, hand-overs
to the outgoing state by tokens before it, the state's own way through the chunk, and pairs of tokens on either side of
it, as the difference ``left dleft - right dright`` summed from it on. What no decay scales, a token's read of itself
and the last one's hand-over, never enters, so that the difference is exact to rounding for strong decays too.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, Combine, sort_rows, unsort_rows
from myfla.ops.common.workspace import Workspace, split_heads
from myfla.ops.generalized_delta_rule.dplr import strong_decay
from myfla.ops.generalized_delta_rule.dplr.chunk_factors import Factors, Inputs, chunk_factors, keep_seen, wide_dtype
from myfla.ops.generalized_delta_rule.dplr.chunk_fwd import Saved, largest_block, load_written, room
from myfla.ops.generalized_delta_rule.dplr.chunk_scan import Way, scan_back
from myfla.utils.autocast import without_autocast

Last = Tuple[torch.Tensor, Combine, torch.Tensor]
"""``x [M, C, K]``, and the last step ``combine(x, other)``, done on the way out."""


class Grads(NamedTuple):
    """Gradients of one block."""

    q: Last
    k: Last
    a: Last
    b: Last
    gk: Last


@without_autocast
def chunk_backward(
    do: torch.Tensor,
    dfinal: Optional[torch.Tensor],
    x: Inputs,
    scale: float,
    layout: ChunkLayout,
    saved: Saved,
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """Gradients of q, k, v, a, b, gk (each in its own dtype) and of the initial state.

    Args:
        do: ``[B, T, H, V]`` gradient of the outputs.
        dfinal: ``[N, H, K, V]`` gradient of the final states, or None.
        x, scale, layout: as given to `chunk_forward`.
        saved: what it kept.
    """
    heads, key, value = x.k.shape[2], x.k.shape[3], x.v.shape[3]
    dtype, device = saved.states.dtype, do.device
    grads = [t.new_empty(t.shape) for t in x]
    running = torch.empty((layout.rows, heads, key, value), dtype=dtype, device=device)
    if dfinal is None:
        running.zero_()
    else:
        running.copy_(sort_rows(layout, dfinal))
    largest = largest_block(layout, heads)
    ones = torch.ones(layout.chunk, layout.chunk, dtype=dtype, device=device)
    sums = torch.cat((ones.triu(), ones.tril(-1)), dim=1)
    state, out = running.view(-1, key, value), Inputs(*grads)
    scratch = Workspace(do, dtype, largest)
    wide = Workspace(do, wide_dtype(device, dtype), largest)
    for group in layout.groups:
        for block in reversed(group):
            at = room(block, heads, saved, (key, value), scratch)
            _backward_block(block, x, do, state, scale, scratch, wide, at, saved.complete, sums, out)
    return grads, unsort_rows(layout, running)


def _backward_block(
    block: Block,
    x: Inputs,
    do: torch.Tensor,
    running: torch.Tensor,
    scale: float,
    scratch: Workspace,
    wide: Workspace,
    at: Saved,
    complete: bool,
    sums: torch.Tensor,
    out: Inputs,
) -> None:
    heads, chunk, f = x.k.shape[2], block.chunk, at.factors
    size, key, value = at.states.shape
    strong = _find_again(block, x, scale, at, complete, wide)
    outer = scratch.get("outer", size, 2 * chunk, value)
    above, below = outer.chunk(2, 1)
    block.load(do, split_heads(below, heads))
    (a, q), (hand_b, hand_k) = f.left.chunk(2, 1), f.hand.chunk(2, 1)

    dread = scratch.get("dread", size, chunk, value)
    torch.bmm(f.products[:, chunk:, :chunk].transpose(1, 2), below, out=dread)
    inverse = at.inverse.transpose(1, 2)
    inner = torch.bmm(inverse, dread, out=scratch.get("inner", size, chunk, value))
    writer = torch.bmm(inverse, hand_b, out=scratch.get("writer", size, chunk, key))
    asked = torch.bmm(q.transpose(1, 2), below, out=scratch.get("asked", size, key, value))
    dstates = scratch.get("dstates", size, key, value)
    scan_back(block, heads, Way(f.whole, writer, a, asked), running, dstates, inner)
    above.copy_(inner)

    dv = torch.bmm(f.products[:, :, chunk:].transpose(1, 2), outer, out=dread)
    block.store(split_heads(dv.baddbmm_(hand_k, dstates), heads), out.v)

    # Through the state, then within the chunk.
    dleft = torch.bmm(outer, at.states.transpose(1, 2), out=scratch.get("dleft", size, 2 * chunk, key))
    dhand = torch.bmm(at.written, dstates.transpose(1, 2), out=scratch.get("dhand", size, 2 * chunk, key))
    ends = torch.mul(at.states, dstates, out=dstates).sum(-1).mul_(f.whole.squeeze(-1))
    # What was found again is of no more use, what was kept is not touched: either way this buffer is free.
    dpairs = torch.bmm(outer, at.written.transpose(1, 2), out=scratch.get("products", size, 2 * chunk, 2 * chunk))
    keep_seen(dpairs)
    others = None
    if strong is not None:
        parts = (t.index_select(0, strong) for t in (dpairs, dleft, dhand, ends))
        others = strong_decay.token_gradients(block, x, scale, strong, *parts)
    token = _token_gradients(f, dpairs, dleft, dhand, ends, scale, sums, scratch)
    for i, (name, (found, combine, other)) in enumerate(zip(Grads._fields, token)):
        if strong is not None and others is not None:
            found = combine(found, other, out=found).index_copy_(0, strong, others[i])
            block.store(split_heads(found, heads), getattr(out, name))
        else:
            block.store(split_heads(found, heads), getattr(out, name), combine, split_heads(other, heads))


def _find_again(
    block: Block, x: Inputs, scale: float, at: Saved, kept: bool, wide: Workspace
) -> Optional[torch.Tensor]:
    """Fill what was not kept of one block; returns the matrices that went the other way, if any did."""
    if kept:
        strong = at.strong.nonzero(as_tuple=True)[0]
        return strong if strong.numel() else None
    at.written[:, : block.chunk].copy_(at.read)
    load_written(block, x.v, at.written)
    return chunk_factors(block, x, scale, at.factors, wide)


def _token_gradients(
    f: Factors,
    dpairs: torch.Tensor,
    dleft: torch.Tensor,
    dhand: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    sums: torch.Tensor,
    scratch: Workspace,
) -> Grads:
    """Everything behind ``dpairs``, ``dleft`` (through the state), ``dhand`` and ``ends``, the decay's own way from
    the state before to the state after. Overwrites them.

    ``sums`` is ``[C, 2C]``: for each token a one at itself and all later ones, then at all earlier ones.
    """
    size, chunk, key = dleft.shape[0], dleft.shape[1] // 2, dleft.shape[2]
    (a, q), (b, k), (hand_b, hand_k) = (both.chunk(2, 1) for both in (f.left, f.right, f.hand))
    own = [quarter.diagonal(0, 1, 2) for quarter in dpairs[:, chunk:].chunk(2, 2)]
    own_b, own_k = (d.clone().unsqueeze(-1) for d in own)
    for d in own:
        d.zero_()
    da, dq = dleft.baddbmm_(dpairs, f.right).chunk(2, 1)
    dright = torch.bmm(dpairs.transpose(1, 2), f.left, out=scratch.get("dright", size, 2 * chunk, key))
    (db, dk), (dhand_b, dhand_k) = dright.chunk(2, 1), dhand.chunk(2, 1)
    flow = scratch.get("flow", size, 2 * chunk, key)
    crossing, handed = flow.chunk(2, 1)
    torch.mul(q, dq, out=crossing).addcmul_(b, db, value=-1).addcmul_(k, dk, value=-1)
    crossing[:, :-1].addcmul_(a[:, 1:], da[:, 1:])
    torch.mul(hand_b, dhand_b, out=handed).addcmul_(hand_k, dhand_k)
    dgk = torch.bmm(sums.expand(size, -1, -1), flow, out=scratch.get("dgk", size, chunk, key))
    before, after = f.rise[:, :-1], f.rise[:, 1:]
    dright.addcmul_(dhand, f.rise[:, chunk:])
    dq.addcmul_(b, own_b).addcmul_(k, own_k)
    db.addcmul_(q, own_b)
    dk.addcmul_(q, own_k)
    if scale != 1:
        dq.mul_(scale)
    return Grads(
        (dq, torch.mul, after), (dk, torch.div, after), (da, torch.mul, before), (db, torch.div, after),
        (dgk, torch.add, ends.unsqueeze(1)),
    )  # fmt: skip

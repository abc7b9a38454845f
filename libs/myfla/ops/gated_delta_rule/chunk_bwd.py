"""Backward of the chunk form, by hand.

In the notation of `chunk_fwd`, for one chunk, with ``dO`` and the gradient ``dS'`` of the outgoing state::

    dV  = T^T (scale tril(pair * Q (beta K)^T)^T dO + (beta fall K) dS')
    dS  = whole dS' + (scale rise Q)^T dO - (rise K)^T dV
    X   = scale tril(pair * dO E^T)                    gradient of Q (beta K)^T
    Y   = -tril(pair * dV E^T, -1)                     gradient of K (beta K)^T
    dQ  = scale rise (dO S^T) + X (beta K)
    dK  = -rise (dV S^T) + Y (beta K) + beta dW
    dW  = fall (E dS'^T) + X^T Q + Y^T K               gradient of beta K where it writes
    dbeta = K . dW

As Q lies over K, so dO lies over -dV and X over Y.

The gradient of the log decay of step t collects every path that crosses it: a sum over tokens from t on of what they
read of the state, over tokens before t of what they hand on, and over the pairs that straddle t. No term is divided
by a decay or by beta, and what cancels is left out before it is summed: the diagonal of ``X * Q (beta K)^T`` never
enters.
"""

from typing import List, Optional, Sequence, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.workspace import Workspace, part, split_heads
from myfla.ops.gated_delta_rule.chunk_decay import Columns
from myfla.ops.gated_delta_rule.chunk_fwd import (
    Saved,
    factors_of,
    halves,
    head_groups,
    largest_block,
    load_both,
    load_rows,
)
from myfla.ops.gated_delta_rule.chunk_scan import Factors, Gradients, replay, scan_back
from myfla.utils.autocast import without_autocast


@without_autocast
def chunk_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    layout: ChunkLayout,
    saved: Sequence[torch.Tensor],
    do: torch.Tensor,
    dfinal: Optional[torch.Tensor],
    unit: bool = False,
    fresh: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, g, beta (each in its own dtype) and of the initial state.

    Args:
        q, k, v, g, beta, scale, layout, unit: as given to `chunk_forward`.
        saved: what it kept.
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[N, HV, K, V]`` gradient of the final states, or None.
        fresh: whether there was no initial state; what is returned as its gradient is then undefined.
    """
    grads = [x.new_empty(x.shape) for x in (q, k, v, g, beta)]
    dinitial = v.new_empty((layout.rows, v.shape[2], k.shape[3], v.shape[3]), dtype=saved[0].dtype)
    if dfinal is None:
        dinitial.zero_()
    else:
        dinitial.copy_(sort_rows(layout, dfinal))
    split = len(Saved._fields)
    fields = split + len(Columns._fields)
    for i, (few, many) in enumerate(head_groups(layout, k.shape[2], v.shape[2])):
        of_these = saved[i * fields : (i + 1) * fields]
        kept, columns = Saved(*of_these[:split]), Columns(*of_these[split:])
        inputs = part(q, few, 2), part(k, few, 2), part(do, many, 2)
        written = [part(x, heads, 2) for x, heads in zip(grads, (few, few, many, many, many))]
        dstates = part(dinitial, many, 1)
        _backward_heads(*inputs, dstates, fresh, dfinal is None, scale, layout, kept, columns, unit, written)
    dq, dk, dv, dg, dbeta = grads
    return dq, dk, dv, dg, dbeta, unsort_rows(layout, dinitial)


def _backward_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    do: torch.Tensor,
    dstates: torch.Tensor,
    fresh: bool,
    last: bool,
    scale: float,
    layout: ChunkLayout,
    saved: Saved,
    columns: Columns,
    unit: bool,
    grads: List[torch.Tensor],
) -> None:
    """Some heads; ``dstates`` are gradients of the final states (zero if ``last``), and afterwards of the initial ones
    (undefined if ``fresh``)."""
    running, heads = dstates.contiguous().view(-1, *dstates.shape[2:]), dstates.shape[1]
    dq, dk, dv, dg, dbeta = grads
    scratch = Workspace(do, dstates.dtype, largest_block(layout) * heads)
    for whole, group in zip(layout.wholes, layout.groups):
        flows = columns.strength.new_empty(whole.size * heads, layout.chunk, 1)
        strengths = torch.empty_like(flows)
        for block in reversed(group):
            at, place = saved.part(block, heads), block.within(whole, heads)
            found = part(flows, place), part(strengths, place)
            _backward_block(
                block, q, k, do, columns.part(block.span(heads)), running, fresh and block.wave == 0,
                last and block is group[-1], scale, unit, scratch, at, (dq, dk, dv, *found),
            )  # fmt: skip
        whole.store(split_heads(flows.flip(1).cumsum(1).flip(1), heads), dg.unsqueeze(-1))
        whole.store(split_heads(strengths, heads), dbeta.unsqueeze(-1))
    if not dstates.is_contiguous():  # else they were worked on in place
        dstates.copy_(running.view(dstates.shape))


def _backward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    do: torch.Tensor,
    columns: Columns,
    running: torch.Tensor,
    fresh: bool,
    last: bool,
    scale: float,
    unit: bool,
    scratch: Workspace,
    at: Saved,
    grads: Tuple[torch.Tensor, ...],
) -> None:
    """One block: stores dq, dk, dv, and ``[M, C, 1]`` what each token adds to the log decay's gradient, and dbeta."""
    heads, chunk = do.shape[2], block.chunk
    strength, weight = columns.strength, columns.strength.transpose(1, 2)
    kept = at.complete  # then nothing of it may be written
    at, factors = _found_again(block, q, k, heads, columns, unit, scratch, at)
    both, keys = at.both, at.both[:, chunk:]

    # Through the state.
    d = Gradients(
        scratch.get("dout", both.shape[0], 2 * chunk, do.shape[3]), scratch.get("dvalues", *at.errors.shape),
        scratch.get("pairs", *at.products.shape), scratch.get("dmeets", *both.shape),
        scratch.get("dhanded", *keys.shape), scratch.get("dwhole", *columns.whole.shape),
    )  # fmt: skip
    above = load_rows(block, do, heads, d.out[:, :chunk], pad=True)
    derrors = torch.bmm(
        at.weighted[:, :chunk].transpose(1, 2), above, out=scratch.get("derrors", *at.errors.shape)
    )
    room = scratch.get("room", block.counts[0] * heads, *running.shape[1:]) if kept else None
    scan_back(block, heads, factors, at.states, at.errors, derrors, running, d, room, fresh, last)
    dmeets, dhanded = d.meets, d.handed
    dmeets.mul_(columns.meet)
    # Products to be summed take the places of what is not needed any more.
    met = torch.mul(both, dmeets, out=scratch.get("dout", *both.shape)).sum(-1, keepdim=True)
    wrote = torch.mul(keys, dhanded, out=scratch.get("derrors", *keys.shape)).sum(-1, keepdim=True)
    wrote.mul_(columns.fall)
    handed_on = (wrote * strength).sum(1).add_((d.whole * columns.whole)[:, 0])

    # Within the chunk.
    pairs = d.pairs
    halves(pairs, chunk)[:, 1].diagonal(dim1=1, dim2=2).zero_()
    flows = torch.mul(pairs, at.products, out=scratch.get("dout", *at.products.shape))
    diagonal = flows.diagonal(dim1=1, dim2=2)
    itself = diagonal.unsqueeze(-1).clone()
    diagonal.zero_()
    wrote.add_(flows.sum(1).unsqueeze(-1))
    met.add_(flows.mul_(weight).sum(-1, keepdim=True))
    halves(pairs, chunk).mul_(at.pair.unsqueeze(1))[:, 0].mul_(scale)
    pairs.mul_(weight)
    dmeets.baddbmm_(pairs, keys)
    dhanded.mul_(columns.hand).baddbmm_(pairs.transpose(1, 2), both)
    dmeets[:, chunk:].add_(dhanded)

    dq, dk, dv, flow, dbeta = grads
    torch.add(met[:, :chunk], met[:, chunk:], out=flow).addcmul_(wrote, strength, value=-1)
    flow[:, -1].add_(handed_on)
    torch.add(wrote, itself, out=dbeta)
    if unit:
        met[:, :chunk].addcmul_(itself, strength)
        met[:, chunk:].addcmul_(dbeta, strength)
        dmeets.addcmul_(both, met, value=-1).mul_(at.length)
    for found, out in zip((dmeets[:, :chunk], dmeets[:, chunk:], d.values), (dq, dk, dv)):
        block.store(split_heads(found, heads), out)


def _found_again(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    heads: int,
    columns: Columns,
    unit: bool,
    scratch: Workspace,
    at: Saved,
) -> Tuple[Saved, Factors]:
    """What was kept of one block, and what was not."""
    if at.complete:
        meets = torch.mul(at.both, columns.meet, out=scratch.get("meets", *at.both.shape))
        return at, Factors(columns.whole, meets, at.handed, at.turned.transpose(1, 2))
    (matrices, chunk, _), key = at.errors.shape, k.shape[3]
    both = load_both(block, q, k, heads, scratch.get("both", matrices, 2 * chunk, key))
    if unit:
        both.mul_(at.length)
    handed = scratch.get("handed", matrices, chunk, key)
    meets = scratch.get("meets", matrices, 2 * chunk, key)
    factors = factors_of(both, columns, at.turned, meets, handed)
    states = scratch.get("states", matrices, *at.states.shape[1:])
    states[: at.states.shape[0]].copy_(at.states)
    replay(block, heads, factors, at.errors, states)
    weighted = torch.mul(at.products, columns.strength.transpose(1, 2), out=scratch.get("weighted", *at.products.shape))
    return at._replace(states=states, both=both, handed=handed, weighted=weighted), factors

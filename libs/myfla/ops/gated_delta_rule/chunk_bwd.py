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
from myfla.ops.common.scratch import Scratch, split_heads
from myfla.ops.gated_delta_rule.chunk_decay import Columns, load_columns
from myfla.ops.gated_delta_rule.chunk_fwd import Saved, head_groups, largest_block, load_both, load_rows
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
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, g, beta (each in its own dtype) and of the initial state.

    Args:
        q, k, v, g, beta, scale, layout, unit: as given to `chunk_forward`.
        saved: what it kept.
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[N, HV, K, V]`` gradient of the final states, or None.
    """
    wanted = q, k, v, g, beta
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in wanted]
    dinitial = v.new_empty(layout.rows, v.shape[2], k.shape[3], v.shape[3], dtype=saved[0].dtype)
    if dfinal is None:
        dinitial.zero_()
    else:
        dinitial.copy_(sort_rows(layout, dfinal))
    fields = len(Saved._fields)
    for i, (few, many) in enumerate(head_groups(layout, k.shape[2], v.shape[2])):
        kept = Saved(*saved[i * fields : (i + 1) * fields])
        inputs = q[:, :, few], k[:, :, few], do[:, :, many], g[:, :, many], beta[:, :, many]
        written = [x[:, :, heads] for x, heads in zip(grads, (few, few, many, many, many))]
        _backward_heads(*inputs, dinitial[:, many], scale, layout, kept, unit, written)
    dq, dk, dv, dg, dbeta = grads
    return dq, dk, dv, dg, dbeta, unsort_rows(layout, dinitial)


def _backward_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    do: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    dstates: torch.Tensor,
    scale: float,
    layout: ChunkLayout,
    saved: Saved,
    unit: bool,
    grads: List[torch.Tensor],
) -> None:
    """Some heads; ``dstates`` are gradients of the final, and afterwards those of the initial states."""
    running, heads = dstates.contiguous().view(-1, *dstates.shape[2:]), dstates.shape[1]
    dq, dk, dv, dg, dbeta = grads
    with Scratch(do, dstates.dtype, largest_block(layout) * heads) as scratch:
        for whole, group in zip(layout.wholes, layout.groups):
            columns = load_columns(whole, g, beta, scale, dstates.dtype)
            flows, strengths = torch.empty_like(columns.strength), torch.empty_like(columns.strength)
            for block in reversed(group):
                at, part = saved.part(block, heads), block.within(whole, heads)
                flow, strengths[part] = _backward_block(
                    block, q, k, do, columns.part(part), running, unit, scratch, at, (dq, dk, dv)
                )
                flows[part] = flow.flip(1).cumsum(1).flip(1)
            whole.store(split_heads(flows, heads), dg.unsqueeze(-1))
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
    unit: bool,
    scratch: Scratch,
    at: Saved,
    grads: Tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One block: stores dq, dk and dv; returns what each token adds to the log decay's gradient, and dbeta."""
    heads, chunk, value = do.shape[2], block.chunk, do.shape[3]
    both = load_both(block, q, k, heads, scratch)
    if unit:
        both.mul_(at.length)
    keys, matrices = both[:, chunk:], both.shape[0]
    d = Gradients(
        scratch.get("dout", matrices, 2 * chunk, value), scratch.get("dvalues", *at.errors.shape),
        scratch.get("dmeets", *both.shape), scratch.get("dhanded", *keys.shape),
        torch.empty_like(columns.whole),
    )  # fmt: skip
    dout = load_rows(block, do, heads, d.out[:, :chunk], pad=True)
    strength, weight = columns.strength, columns.strength.transpose(1, 2)

    # Through the state.
    meets = torch.mul(both, columns.meet, out=scratch.get("meets", *both.shape))
    handed = torch.mul(keys, columns.hand, out=scratch.get("handed", *keys.shape))
    factors = Factors(columns.whole, meets, handed, at.inverse)
    states = scratch.get("states", matrices, *at.opening.shape[1:])
    states[: at.opening.shape[0]].copy_(at.opening)
    replay(block, heads, factors, at.errors, states)
    attend = torch.mul(at.products[:, :chunk], weight, out=scratch.get("attend", *at.inverse.shape))
    derrors = torch.bmm(attend.transpose(1, 2), dout, out=scratch.get("derrors", *at.errors.shape))
    scan_back(block, heads, factors, states, at.errors, derrors, running, d)
    d.meets.mul_(columns.meet)
    met = torch.mul(both, d.meets, out=meets).sum(-1, keepdim=True)
    wrote = torch.mul(keys, d.handed, out=handed).sum(-1, keepdim=True).mul_(columns.fall)
    handed_on = (wrote * strength).sum(1).add_((d.whole * columns.whole)[:, 0])

    # Within the chunk.
    pairs = torch.bmm(d.out, at.errors.transpose(1, 2), out=scratch.get("pairs", *at.pair.shape))
    flows = torch.mul(pairs, at.products, out=scratch.get("flows", *at.pair.shape))
    diagonal = flows.diagonal(dim1=1, dim2=2)
    itself = diagonal.unsqueeze(-1).clone()
    diagonal.zero_()
    wrote.add_(flows.sum(1).unsqueeze(-1))
    met.add_(flows.mul_(weight).sum(-1, keepdim=True))
    pairs.mul_(at.pair).mul_(weight)
    d.meets.baddbmm_(pairs, keys)
    d.handed.mul_(columns.hand).baddbmm_(pairs.transpose(1, 2), both)
    d.meets[:, chunk:].add_(d.handed)

    flow = (met[:, :chunk] + met[:, chunk:]).addcmul_(wrote, strength, value=-1)
    flow[:, -1] += handed_on
    dbeta = wrote.add_(itself)
    if unit:
        met[:, :chunk].addcmul_(itself, strength)
        met[:, chunk:].addcmul_(dbeta, strength)
        d.meets.addcmul_(both, met, value=-1).mul_(at.length)
    for found, out in zip((d.meets[:, :chunk], d.meets[:, chunk:], d.values), grads):
        block.store(split_heads(found, heads), out)
    return flow, dbeta

"""Backward of the chunk form, by hand.

In the notation of `chunk_fwd`, for one chunk, with ``dO`` and the gradient ``dS'`` of the outgoing state::

    ddelta = scale tril(pair * Q K^T)^T dO + (fall K) dS'
    eta    = T^T ddelta                                     gradient of beta V - (beta rise K) S
    dS     = whole dS' + (scale rise Q)^T dO - (beta rise K)^T eta
    X      = scale tril(pair * dO delta^T)                  gradient of Q K^T
    Y      = -tril(pair * eta delta^T, -1)                  gradient of (beta K) K^T
    dQ     = scale rise (dO S^T) + X K
    dK     = fall (delta dS'^T) - beta rise (eta S^T) + X^T Q + (beta Y + (beta Y)^T) K
    dV     = beta eta
    dbeta  = eta . V - K . rise (eta S^T) + rowsum(Y * K K^T)

The gradient of the log decay of step t collects every path that crosses it: a sum over tokens from t on of what they
read of the state, over tokens before t of what they hand on, and over the pairs that straddle t. No term is divided
by a decay, and what cancels is left out before it is summed: the diagonal of ``X * Q K^T`` never enters.
"""

from typing import Dict, Optional, Tuple

import torch

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.scratch import Scratch, split_heads
from myfla.ops.gated_delta_rule.chunk_decay import Columns, load_columns
from myfla.ops.gated_delta_rule.chunk_fwd import Saved, largest_block, load_rows
from myfla.ops.gated_delta_rule.chunk_scan import Factors, scan_back
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
    saved: Saved,
    do: torch.Tensor,
    dfinal: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, g, beta (each in its own dtype) and of the initial state.

    Args:
        q, k, v, g, beta, scale, layout: as given to `chunk_forward`.
        saved: what it kept.
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[N, HV, K, V]`` gradient of the final states, or None.
    """
    heads, key, value = v.shape[2], k.shape[3], v.shape[3]
    dtype = saved.states.dtype
    grads = {name: torch.empty_like(x, memory_format=torch.contiguous_format)
             for name, x in (("q", q), ("k", k), ("v", v), ("g", g), ("beta", beta))}
    if dfinal is None:
        running = v.new_zeros(layout.rows, heads, key, value, dtype=dtype)
    else:
        running = sort_rows(layout, dfinal).to(dtype).clone(memory_format=torch.contiguous_format)
    flat = running.view(-1, key, value)
    scratch = Scratch(v, dtype, largest_block(layout, heads))
    for whole, group in zip(layout.wholes, layout.groups):
        columns = load_columns(whole, g, beta, scale, dtype)
        dg, dbeta = torch.empty_like(columns.strength), torch.empty_like(columns.strength)
        for block in reversed(group):
            at = Saved(*(x[block.span(heads)] for x in saved))
            part = block.within(whole, heads)
            flow, dbeta[part] = _backward_block(
                block, q, k, v, do, columns.part(part), flat, scale, scratch, at, grads
            )
            dg[part] = flow.flip(1).cumsum(1).flip(1)
        whole.store(split_heads(dg, heads), grads["g"].unsqueeze(-1))
        whole.store(split_heads(dbeta, heads), grads["beta"].unsqueeze(-1))
    return grads["q"], grads["k"], grads["v"], grads["g"], grads["beta"], unsort_rows(layout, running)


def _backward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    do: torch.Tensor,
    columns: Columns,
    running: torch.Tensor,
    scale: float,
    scratch: Scratch,
    at: Saved,
    grads: Dict[str, torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One block: stores dq, dk and dv; returns what each token adds to the log decay's gradient, and dbeta."""
    heads = v.shape[2]
    q = load_rows(block, q, "q", heads, scratch, pad=False)
    k = load_rows(block, k, "k", heads, scratch, pad=False)
    do = load_rows(block, do, "do", heads, scratch, pad=True)
    strength = columns.strength

    ddelta, eta = scratch.get("ddelta", *at.delta.shape), scratch.get("eta", *at.delta.shape)
    # Not baddbmm with beta=0: PyTorch 1.12 multiplies what stands in the buffer by that zero, NaN too.
    torch.bmm(at.attend.transpose(1, 2), do, out=ddelta).mul_(scale)
    reader = torch.mul(q, columns.read, out=scratch.get("reader", *q.shape))
    eraser = torch.mul(k, columns.erase, out=scratch.get("eraser", *k.shape))
    handed = torch.mul(k, columns.fall, out=scratch.get("handed", *k.shape))
    dstates = scratch.get("dstates", *at.states.shape)
    factors = Factors(columns.whole, eraser, handed, at.inverse)
    scan_back(block, heads, factors, reader, do, ddelta, running, dstates, eta)

    # Through the state.
    dq = torch.bmm(do, at.states.transpose(1, 2), out=reader).mul_(columns.read)
    erased = torch.bmm(eta, at.states.transpose(1, 2), out=eraser)
    dk = torch.bmm(at.delta, dstates.transpose(1, 2), out=handed).mul_(columns.fall)
    read, erase, hand = _dot(q, dq, scratch), _dot(k, erased, scratch).mul_(columns.rise), _dot(k, dk, scratch)
    carried = torch.mul(at.states, dstates, out=dstates).sum((1, 2), keepdim=True)

    # Within the chunk.
    dattend = torch.bmm(do, at.delta.transpose(1, 2), out=scratch.get("dattend", *at.pair.shape))
    doverlap = torch.bmm(eta, at.delta.transpose(1, 2), out=scratch.get("doverlap", *at.pair.shape)).tril_(-1)
    pairs = torch.mul(doverlap, at.overlap, out=scratch.get("pairs", *at.pair.shape))
    erase_inside = pairs.sum(-1, keepdim=True)
    pairs.mul_(-strength).addcmul_(dattend, at.attend, value=scale).tril_(-1)
    flow = pairs.sum(2, keepdim=True) - pairs.sum(1).unsqueeze(-1)
    dattend.mul_(at.pair)
    doverlap.mul_(at.pair).mul_(strength)
    both_ways = torch.add(doverlap, doverlap.transpose(1, 2), out=pairs)
    dq.baddbmm_(dattend, k, alpha=scale)
    dk.addcmul_(erased, columns.erase, value=-1).baddbmm_(dattend.transpose(1, 2), q, alpha=scale)
    dk.baddbmm_(both_ways, k, alpha=-1)

    flow.add_(read).addcmul_(strength, erase, value=-1).sub_(hand)
    flow[:, -1:] += carried * columns.whole + hand.sum(1, keepdim=True)
    dbeta = _dot(eta, load_rows(block, v, "v", heads, scratch, pad=False), scratch).sub_(erase).sub_(erase_inside)
    for name, gradient in (("q", dq), ("k", dk), ("v", eta.mul_(strength))):
        block.store(split_heads(gradient, heads), grads[name])
    return flow, dbeta


def _dot(a: torch.Tensor, b: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Row by row ``a . b``: ``[M, C, D]`` twice to ``[M, C, 1]``."""
    return torch.mul(a, b, out=scratch.get(f"dot{a.shape[2]}", *a.shape)).sum(-1, keepdim=True)

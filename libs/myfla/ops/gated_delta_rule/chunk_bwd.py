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
from myfla.ops.gated_delta_rule.chunk_decay import Decay, chunk_decay
from myfla.ops.gated_delta_rule.chunk_fwd import Saved, largest_block, load_queries_and_keys, load_rows
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
    for group in layout.groups:
        for block in reversed(group):
            at = Saved(*(x[block.span(heads)] for x in saved))
            _backward_block(block, q, k, v, g, beta, do, flat, scale, scratch, at, grads)
    return grads["q"], grads["k"], grads["v"], grads["g"], grads["beta"], unsort_rows(layout, running)


def _backward_block(
    block: Block,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    do: torch.Tensor,
    running: torch.Tensor,
    scale: float,
    scratch: Scratch,
    at: Saved,
    grads: Dict[str, torch.Tensor],
) -> None:
    heads, chunk, key, value = v.shape[2], block.chunk, k.shape[3], v.shape[3]
    both = load_queries_and_keys(block, q, k, heads, scratch)
    size, queries, keys = both.shape[0], both[:, :chunk], both[:, chunk:]
    strength = load_rows(block, beta.unsqueeze(-1), "beta", scratch, pad=True)
    decay = chunk_decay(block, g, scratch)
    read_scale, erase_scale = decay.rise * scale, decay.rise * strength

    # The two gradients that meet the state, dO and eta, lie above each other like queries and keys.
    outer = scratch.get("outer", size, 2 * chunk, value)
    block.load(do, split_heads(outer, heads)[:, :, :chunk])
    factors = scratch.get("factors", size, 2 * chunk, key)
    torch.mul(queries, read_scale, out=factors[:, :chunk])
    torch.mul(keys, -erase_scale, out=factors[:, chunk:])
    handed = torch.mul(keys, decay.fall, out=scratch.get("handed", size, chunk, key))
    square = torch.mul(at.products[:, :chunk], decay.pair, out=scratch.get("square", size, chunk, chunk)).tril_()
    ddelta = scratch.get("ddelta", size, chunk, value)
    torch.bmm(square.transpose(1, 2), outer[:, :chunk], out=ddelta).mul_(scale)
    dstates = scratch.get("dstates", size, key, value)
    _scan_back(block, heads, running, decay, factors, handed, outer, ddelta, dstates, at)

    # Through the state.
    by_state = torch.bmm(outer, at.states.transpose(1, 2), out=factors)
    dq, dk = by_state[:, :chunk].mul_(read_scale), handed
    read = _dot(queries, dq, scratch)
    erase = _dot(keys, by_state[:, chunk:].mul_(-decay.rise), scratch)
    torch.bmm(at.delta, dstates.transpose(1, 2), out=dk).mul_(decay.fall)
    hand = _dot(keys, dk, scratch)
    carried = torch.mul(at.states, dstates, out=dstates).sum((1, 2)).unsqueeze(-1)

    # Within the chunk.
    inner = torch.bmm(outer, at.delta.transpose(1, 2), out=scratch.get("inner", size, 2 * chunk, chunk))
    inner_q, inner_k = inner[:, :chunk], inner[:, chunk:]
    inner_q.mul_(decay.pair).mul_(scale).tril_()
    inner_k.mul_(decay.pair).neg_().tril_(-1)
    pairs = torch.mul(inner_k, at.products[:, chunk:], out=square)
    erase_inside = pairs.sum(-1)
    pairs.mul_(strength).add_(torch.mul(inner_q, at.products[:, :chunk], out=decay.pair)).tril_(-1)
    inner_k.mul_(strength)
    dq.baddbmm_(inner_q, keys)
    inner_k.add_(inner_k.transpose(1, 2).clone())
    dk.addcmul_(by_state[:, chunk:], strength).baddbmm_(inner.transpose(1, 2), both)

    flow = pairs.sum(-1) - pairs.sum(-2) + read + strength[..., 0] * erase - hand
    flow[:, -1:] += carried * decay.whole[..., 0] + hand.sum(-1, keepdim=True)
    dg = flow.flip(-1).cumsum(-1).flip(-1)
    eta = outer[:, chunk:]
    dbeta = _dot(eta, load_rows(block, v, "v", scratch, pad=False), scratch).add_(erase).add_(erase_inside)
    dv = eta.mul_(strength)
    for name, gradient in (("q", dq), ("k", dk), ("v", dv)):
        block.store(split_heads(gradient, heads), grads[name])
    for name, column in (("g", dg), ("beta", dbeta)):
        block.store(split_heads(column.unsqueeze(-1), heads), grads[name].unsqueeze(-1))


def _scan_back(
    block: Block,
    heads: int,
    running: torch.Tensor,
    decay: Decay,
    factors: torch.Tensor,
    handed: torch.Tensor,
    outer: torch.Tensor,
    ddelta: torch.Tensor,
    dstates: torch.Tensor,
    at: Saved,
) -> None:
    """From the last chunk to the first: fill ``dstates`` (after each chunk) and eta, the lower half of ``outer``."""
    first, chunk = block.rows[0] * heads, block.chunk
    waves = block.waves(heads)
    filled = 0
    for i in reversed(range(len(waves))):
        wave = waves[i]
        rows = wave.stop - wave.start
        dstates[wave][filled:].copy_(running[first + filled : first + rows])
        gradient = dstates[wave]
        right = torch.baddbmm(ddelta[wave], handed[wave], gradient)
        torch.bmm(at.inverse[wave].transpose(1, 2), right, out=outer[wave, chunk:])
        target = dstates[waves[i - 1]][:rows] if i else running[first : first + rows]
        torch.mul(gradient, decay.whole[wave], out=target)
        target.baddbmm_(factors[wave].transpose(1, 2), outer[wave])
        filled = rows


def _dot(a: torch.Tensor, b: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """Row by row ``a . b``: ``[M, C, D]`` twice to ``[M, C]``."""
    return torch.mul(a, b, out=scratch.get(f"dot{a.shape[2]}", a.shape[0], *a.shape[1:])).sum(-1)

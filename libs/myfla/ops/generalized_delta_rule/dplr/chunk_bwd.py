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

from myfla.ops.common.layout import Block, ChunkLayout, sort_rows, unsort_rows
from myfla.ops.common.scratch import Scratch, split_heads
from myfla.ops.generalized_delta_rule.dplr import strong_decay
from myfla.ops.generalized_delta_rule.dplr.chunk_factors import Factors, Inputs, chunk_factors, keep_seen, wide_dtype
from myfla.ops.generalized_delta_rule.dplr.chunk_fwd import Saved, largest_block
from myfla.ops.generalized_delta_rule.dplr.chunk_scan import Way, scan_back
from myfla.utils.autocast import without_autocast


class Grads(NamedTuple):
    """Gradients of one block, ``[M, C, K]``."""

    q: torch.Tensor
    k: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    gk: torch.Tensor


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
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in x]
    if dfinal is None:
        running = torch.zeros(layout.rows, heads, key, value, dtype=dtype, device=device)
    else:
        running = sort_rows(layout, dfinal).to(dtype).clone(memory_format=torch.contiguous_format)
    largest = largest_block(layout, heads)
    ones = torch.ones(layout.chunk, layout.chunk, dtype=dtype, device=device)
    sums = torch.cat((ones.triu(), ones.tril(-1)), dim=1)
    state, out = running.view(-1, key, value), Inputs(*grads)
    with Scratch(do, dtype, largest) as scratch, Scratch(do, wide_dtype(device, dtype), largest) as wide:
        for group in layout.groups:
            for block in reversed(group):
                at = Saved(*(s[block.span(heads)] for s in saved))
                _backward_block(block, x, do, state, scale, scratch, wide, at, sums, out)
    return grads, unsort_rows(layout, running)


def _backward_block(
    block: Block,
    x: Inputs,
    do: torch.Tensor,
    running: torch.Tensor,
    scale: float,
    scratch: Scratch,
    wide: Scratch,
    at: Saved,
    sums: torch.Tensor,
    out: Inputs,
) -> None:
    heads, chunk, key, value = x.k.shape[2], block.chunk, x.k.shape[3], x.v.shape[3]
    f = chunk_factors(block, x, scale, scratch, wide)
    size = f.left.shape[0]
    outer, written = (scratch.get(name, size, 2 * chunk, value) for name in ("outer", "written"))
    block.load(do, split_heads(outer, heads)[:, :, chunk:])
    block.load(x.v, split_heads(written, heads)[:, :, chunk:], pad=False)
    written[:, :chunk].copy_(at.read)

    dread = scratch.get("dread", size, chunk, value)
    torch.bmm(f.products[:, chunk:, :chunk].transpose(1, 2), outer[:, chunk:], out=dread)
    inverse = at.inverse.transpose(1, 2)
    inner = torch.bmm(inverse, dread, out=scratch.get("inner", size, chunk, value))
    writer = torch.bmm(inverse, f.hand[:, :chunk], out=scratch.get("writer", size, chunk, key))
    asked = torch.bmm(f.left[:, chunk:].transpose(1, 2), outer[:, chunk:], out=scratch.get("asked", size, key, value))
    dstates = scratch.get("dstates", size, key, value)
    scan_back(block, heads, Way(f.whole, writer, f.left[:, :chunk], asked), running, dstates, inner)
    outer[:, :chunk].copy_(inner)

    dv = torch.bmm(f.products[:, :, chunk:].transpose(1, 2), outer, out=dread)
    block.store(split_heads(dv.baddbmm_(f.hand[:, chunk:], dstates), heads), out.v)

    # Through the state, then within the chunk.
    dleft = torch.bmm(outer, at.states.transpose(1, 2), out=scratch.get("dleft", size, 2 * chunk, key))
    dhand = torch.bmm(written, dstates.transpose(1, 2), out=scratch.get("dhand", size, 2 * chunk, key))
    ends = torch.mul(at.states, dstates, out=dstates).sum(-1).mul_(f.whole.squeeze(-1))
    dpairs = torch.bmm(outer, written.transpose(1, 2), out=f.products)
    keep_seen(dpairs)
    strong = None
    if f.strong is not None:
        parts = (t.index_select(0, f.strong) for t in (dpairs, dleft, dhand, ends))
        strong = strong_decay.token_gradients(block, x, scale, f.strong, *parts)
    token = _token_gradients(f, dpairs, dleft, dhand, ends, scale, sums, scratch)
    for i, name in enumerate(Grads._fields):
        if strong is not None and f.strong is not None:
            token[i].index_copy_(0, f.strong, strong[i])
        block.store(split_heads(token[i], heads), getattr(out, name))


def _token_gradients(
    f: Factors,
    dpairs: torch.Tensor,
    dleft: torch.Tensor,
    dhand: torch.Tensor,
    ends: torch.Tensor,
    scale: float,
    sums: torch.Tensor,
    scratch: Scratch,
) -> Grads:
    """Everything behind ``dpairs``, ``dleft`` (through the state), ``dhand`` and ``ends``, the decay's own way from
    the state before to the state after. Overwrites them.

    ``sums`` is ``[C, 2C]``: for each token a one at itself and all later ones, then at all earlier ones.
    """
    size, chunk, key = f.rise.shape
    queries = dpairs[:, chunk:]
    own = [queries[:, :, part].diagonal(0, 1, 2) for part in (slice(0, chunk), slice(chunk, None))]
    own_b, own_k = (d.clone().unsqueeze(-1) for d in own)
    for d in own:
        d.zero_()
    dleft.baddbmm_(dpairs, f.right)
    dright = torch.bmm(dpairs.transpose(1, 2), f.left, out=scratch.get("dright", size, 2 * chunk, key))
    halves = slice(0, chunk), slice(chunk, None)
    flow = scratch.get("flow", size, 2 * chunk, key)
    crossing, handed = (flow[:, half] for half in halves)
    torch.mul(f.left[:, chunk:], dleft[:, chunk:], out=crossing)
    crossing[:, :-1].addcmul_(f.left[:, 1:chunk], dleft[:, 1:chunk])
    torch.mul(dhand[:, :chunk], f.hand[:, :chunk], out=handed).addcmul_(dhand[:, chunk:], f.hand[:, chunk:])
    for half in halves:
        crossing.addcmul_(f.right[:, half], dright[:, half], value=-1)
    dgk = torch.bmm(sums.expand(size, -1, -1), flow, out=scratch.get("dgk", size, chunk, key)).add_(ends.unsqueeze(1))
    dright.addcmul_(dhand, f.rise[:, -1:])
    for half, weight in zip(halves, (own_b, own_k)):
        dleft[:, chunk:].addcmul_(f.right[:, half], weight)
        dright[:, half].addcmul_(f.left[:, chunk:], weight)
    dleft[:, 1:chunk].mul_(f.rise[:, :-1])
    dq = dleft[:, chunk:].mul_(f.rise)
    dright.view(size, 2, chunk, key).mul_(f.fall.unsqueeze(1))
    return Grads(dq.mul_(scale) if scale != 1 else dq, dright[:, chunk:], dleft[:, :chunk], dright[:, :chunk], dgk)

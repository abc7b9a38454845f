"""Backward of the chunk form in half precision, by hand.

In the notation of `half_fwd`, for one chunk, with ``dO`` and the gradient ``dS'`` of the outgoing state::

    g0       = T^T A_qb^T dO,   writer = T^T b^
    dS       = (whole I + a'^T writer) dS' + left^T [g0; dO]        chunk after chunk, the last one first
    g        = g0 + writer dS'                                     gradient of what u is made of
    dv       = [A_ak; A_qk]^T [g; dO] + k^ dS'
    [dleft, dpairs] = [g; dO] [S; u; v]^T,   dhand = [u; v] dS'^T

and from these the operands' gradients, meeting by meeting, and the tokens'. A step's log decay lies on every path that
crosses it: its gradient is summed from what such paths contribute (`half_passes.collect`).
"""

from typing import Optional, Tuple

import torch

from myfla.ops.common.half_products import accumulate, product
from myfla.ops.generalized_delta_rule.dplr.half_fwd import How, Kept, transitions
from myfla.ops.generalized_delta_rule.dplr.half_passes import collect, decay_gradient, split_products
from myfla.ops.generalized_delta_rule.dplr.half_scan import scan_back
from myfla.utils.autocast import without_autocast

Grads = Tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]


@without_autocast
def half_backward(
    do: torch.Tensor,
    dfinal: Optional[torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    how: How,
    kept: Kept,
) -> Grads:
    """Gradients of q, k, v, a, b, gk (each in its own dtype) and of the initial state.

    Args:
        do: ``[B, T, H, V]`` gradient of the outputs.
        dfinal: ``[B, H, K, V]`` gradient of the final states, or None.
        q, k, v, a, b, gk, how: as given to `half_forward`.
        kept: what the forward kept.
    """
    cut, dtype, levels, run = how.cut, how.dtype, how.levels, how.run
    key, value, m, chunk = k.shape[3], v.shape[3], cut.matrices, cut.chunk
    pairs, states, written = kept.pairs, kept.stack[:, :key], kept.stack[:, key:]
    outer = v.new_empty(m, 2 * chunk, value)
    inner, dout = outer.split(chunk, 1)
    cut.load(do.to(v.dtype), dout)
    turned = kept.inverse.transpose(1, 2)
    product(turned, product(pairs[:, chunk:, :chunk].transpose(1, 2), dout), out=inner)
    writer = product(turned, kept.hand[:, :chunk])

    effects = transitions(kept.left[:, :chunk], writer, kept.c, dtype)
    given = product(kept.left.transpose(1, 2), outer, dtype)
    if dfinal is None:
        dstate = torch.zeros(cut.batch * cut.heads, key, value, dtype=dtype, device=v.device)
    else:
        dstate = dfinal.flatten(0, 1).to(dtype)
    dstates = v.new_empty(m, key, value)
    dinitial = scan_back(cut, effects, given, kept.passed, dstate, dstates)
    dinitial = dinitial.unflatten(0, (cut.batch, cut.heads))
    del effects, given
    accumulate(inner, writer, dstates)
    dv = product(pairs[:, :, chunk:].transpose(1, 2), outer)
    dv = cut.store(accumulate(dv, kept.hand[:, chunk:], dstates), v)

    dboth = product(outer, kept.stack.transpose(1, 2), dtype)
    dhand = product(written, dstates.transpose(1, 2), dtype)
    half = len(levels.meetings())
    read, reads, dread, dreads = kept.operands[:half], kept.operands[half:], [], []
    for earlier, later, dsquare in zip(read, reads, run(split_products)(dboth[:, :, key:], levels)):
        dread.append(product(dsquare.transpose(1, 2), later, dtype))
        dreads.append(product(dsquare, earlier, dtype))
    dq, dk, da, db, flow, handing = run(collect)(
        kept.c, kept.left, kept.hand, dboth[:, :, :key], dhand, read, reads, dread, dreads, cut, levels, how.scale,
        (q, k, a, b),
    )  # fmt: skip
    dgk = run(decay_gradient)(flow, flow.cumsum(1), handing, states, dstates, kept.c, gk, cut, levels)
    return dq, dk, dv, da, db, dgk, dinitial

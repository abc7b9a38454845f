"""Backward of the chunk form in half precision, by hand.

In the notation of `half_fwd`, for one chunk, with ``dO`` and the gradient ``dS'`` of the outgoing state::

    ddelta   = tril(pair * q k~^T)^T dO + (fall k~) dS'^T
    dV       = eta = T^T ddelta
    dS       = whole dS' + dO^T (rise q) - ddelta^T (T rise k)
    X        = tril(pair * dO delta^T)                       gradient of q k~^T
    Y        = -tril(pair * eta delta^T, -1)                 gradient of k k~^T
    [dq; dk] = [rise dO, X; -rise eta, Y] [S; k~]            one product
    dk~      = fall (delta dS') + [X; Y]^T [q; k]

with the factors of ``q``, ``k`` and ``k~`` multiplied in, so that what comes out are gradients of ``Q`` and ``K``. A
token's log decay lies on every path that crosses it: its gradient is a sum over tokens from it on of
``q.dq + k.dk - k~.dk~``, and of what the chunk hands on. beta enters through the writer key alone, lengths through the
factors, whose gradients are row by row products that are there already.
"""

from typing import Optional, Tuple

import torch

from myfla.ops.common.half_products import accumulate, product, put
from myfla.ops.gated_delta_rule.half_factors import load_factors
from myfla.ops.gated_delta_rule.half_fwd import Kept, Lengths
from myfla.ops.gated_delta_rule.half_scan import join_groups, scan_back
from myfla.ops.gated_delta_rule.half_tokens import Cut
from myfla.utils.autocast import without_autocast

Grads = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

TINY = 1e-20
"""A write strength below this, but for zero, is left out of gradients that it would scale."""


@without_autocast
def half_backward(
    do: torch.Tensor,
    dfinal: Optional[torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float,
    cut: Cut,
    lengths: Lengths,
    kept: Kept,
    dtype: torch.dtype,
) -> Grads:
    """Gradients of q, k, v, g, beta (each in its own dtype) and of the initial state.

    Args:
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[B, HV, K, V]`` gradient of the final states, or None.
        q, k, v, g, beta, scale, cut, dtype: as given to `half_forward`.
        lengths: of q and k, if they were brought to length one.
        kept: what the forward kept.
    """
    key, value, m, chunk = k.shape[3], v.shape[3], cut.matrices, cut.chunk
    f = load_factors(cut, g, beta, scale, lengths, dtype)
    outer = v.new_empty(m, 2 * chunk, value)
    dout, eta = outer[:, :chunk], outer[:, chunk:]
    cut.load(do.to(v.dtype), dout)
    ddelta = product(kept.attend.transpose(1, 2), dout)
    given = product(dout.transpose(1, 2), kept.reads, dtype)

    if dfinal is None:
        dstate = torch.zeros(cut.batch * cut.heads, value, key, dtype=dtype, device=v.device)
    else:
        dstate = dfinal.flatten(0, 1).transpose(1, 2).to(dtype).clone(memory_format=torch.contiguous_format)
    reader, handed, whole, given = (cut.by_row(x) for x in (kept.reader, kept.handed, f.whole, given))
    if kept.passed is not None:
        fresh = torch.zeros(cut.rows, value, key, dtype=dtype, device=v.device)
        fresh = scan_back(cut.by_row(ddelta).clone(), reader, handed, whole, given, fresh)
        dstate = join_groups(cut, fresh, kept.passed, dstate, back=True)[0]
    dstates = v.new_empty(m, value, key)
    dstate = scan_back(cut.by_row(ddelta), reader, handed, whole, given, dstate, cut.by_row(dstates))
    dinitial = dstate.unflatten(0, (cut.batch, cut.heads, cut.groups))[:, :, 0].transpose(2, 3)
    product(kept.inverse.transpose(1, 2), ddelta, out=eta)

    # beta's gradient is that of K~ over beta, and where beta is zero that of K~ with a beta of one. Both products with
    # X and Y take the same rounded matrices, so that what cancels in the decays' gradient cancels exactly.
    write = f.write.masked_fill(f.write.abs() < TINY, 1.0)
    counts = f.write / write
    left, pairs = v.new_empty(m, 2 * chunk, value + chunk), v.new_empty(m, 2, chunk, chunk)
    rows = torch.stack((f.query, -f.key), dim=1)
    put(left[:, :, :value].unflatten(1, (2, chunk)), outer.view(m, 2, chunk, value), rows * f.rise.unsqueeze(1),
        rough=True)  # fmt: skip
    inner = product(outer, kept.delta.transpose(1, 2), dtype).view(m, 2, chunk, chunk)
    inner.mul_(f.pair.unsqueeze(1)).mul_(rows)
    inner[:, 1].diagonal(0, 1, 2).zero_()
    put(pairs, inner, write.view(m, 1, 1, chunk))
    put(left[:, :, value:].unflatten(1, (2, chunk)), inner, f.write.view(m, 1, 1, chunk))

    dboth = product(left, kept.stack, dtype)
    ends = torch.empty_like(kept.delta)
    dwriter = product(put(ends, kept.delta, f.fall * write, rough=True), dstates, dtype)
    keys = kept.stack[:, value:]
    hand = dot(keys, dwriter)
    accumulate(dwriter, pairs.view(m, 2 * chunk, chunk).transpose(1, 2), kept.both)

    own = dot(kept.both, dboth)
    across = dot(keys, dwriter)
    flow = own[:, :chunk] + own[:, chunk:] - across * counts
    last = (hand * counts).sum(1) + dot(kept.stack[:, :value].flatten(1), dstates.flatten(1), dtype) * f.whole[:, 0]
    dg = (flow.flip(1).cumsum(1).flip(1) + last.unsqueeze(1)).contiguous()
    dbeta = across * (f.key / write)
    dqueries, dkeys = dboth[:, :chunk], dboth[:, chunk:].addcmul_(dwriter, counts)
    if lengths is not None:
        own = torch.cat((own[:, :chunk] * (f.query / scale).square(),
                         (own[:, chunk:] + across * counts) * f.key.square()), dim=1)  # fmt: skip
        dboth.addcmul_(kept.both, own, value=-1)
    dq, dk = cut.store(dqueries, q), cut.store(dkeys, k)
    dg, dbeta = (cut.store(x, like.unsqueeze(-1)).squeeze(-1) for x, like in ((dg, g), (dbeta, beta)))
    return dq, dk, cut.store(eta, v), dg, dbeta, dinitial


def dot(a: torch.Tensor, b: torch.Tensor, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
    """Row by row ``a . b``: ``[..., D]`` twice to ``[..., 1]``."""
    return (a * b).sum(-1, keepdim=True, dtype=dtype)

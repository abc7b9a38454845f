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

from myfla.ops.common.half_products import product
from myfla.ops.gated_delta_rule.half_fwd import How, Kept
from myfla.ops.gated_delta_rule.half_linear import back_linear
from myfla.ops.gated_delta_rule.half_passes import advance, collect, scale_rows, weigh_back
from myfla.ops.gated_delta_rule.half_scan import back_by_steps
from myfla.utils.autocast import without_autocast

Grads = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@without_autocast
def half_backward(
    do: torch.Tensor,
    dfinal: Optional[torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    how: How,
    kept: Kept,
) -> Grads:
    """Gradients of q, k, v, g, beta (each in its own dtype) and of the initial state.

    Args:
        do: ``[B, T, HV, V]`` gradient of the outputs.
        dfinal: ``[B, HV, K, V]`` gradient of the final states, or None.
        q, k, v, g, beta, how: as given to `half_forward`.
        kept: what the forward kept.
    """
    cut, dtype, f = how.cut, how.dtype, kept.factors
    run = how.run
    key, value, m, chunk = k.shape[3], v.shape[3], cut.matrices, cut.chunk
    three = v.new_empty(m, 3 * chunk, value)
    ddelta, dout, eta = three.split(chunk, 1)
    cut.load(do.to(v.dtype), dout)
    product(kept.attend.transpose(1, 2), dout, out=ddelta)

    if dfinal is None:
        dstate = torch.zeros(cut.batch * cut.heads, value, key, dtype=dtype, device=v.device)
    else:
        dstate = dfinal.flatten(0, 1).transpose(1, 2).to(dtype).clone(memory_format=torch.contiguous_format)
    dstates = v.new_empty(m, value, key)
    told, asked, handed, whole = (
        cut.by_row(x) for x in (three[:, : 2 * chunk], kept.asked, kept.handed, f.whole)
    )
    back = back_linear if how.linear else back_by_steps
    dstate = back(run(advance), cut, told, asked, handed, whole, kept.passed, dstate, cut.by_row(dstates))
    dinitial = dstate.unflatten(0, (cut.batch, cut.heads, cut.groups))[:, :, 0].transpose(2, 3)
    product(kept.inverse.transpose(1, 2), ddelta, out=eta)

    outer = three[:, chunk:]
    inner = product(outer, kept.delta.transpose(1, 2), dtype)
    left, pairs = (v.new_empty(m, 2 * chunk, size) for size in (value + chunk, chunk))
    ends, write, counts = run(scale_rows)(outer, kept.delta, f, left[:, :, :value])
    halves = zip((f.query, -f.key), (False, True), *(x.split(chunk, 1) for x in (inner, left[:, :, value:], pairs)))
    for row, strict, x, out, pair in halves:
        run(weigh_back)(x, f.sums, row, f.write, write, strict, out, pair)
    dboth = product(left, kept.stack, dtype)
    handing = product(ends, dstates, dtype)
    within = product(pairs.transpose(1, 2), kept.both, dtype)
    dq, dk, dg, dbeta = run(collect)(
        kept.both, dboth, handing, within, kept.stack[:, :value], dstates, f, write, counts, how.scale, cut, how.unit,
        (q, k, g, beta),
    )  # fmt: skip
    return dq, dk, cut.store(eta, v), dg, dbeta, dinitial

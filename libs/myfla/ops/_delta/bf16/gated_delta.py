"""The gated delta rule, with one decay for each head.

Lengths, write strengths and decays do not change the half-precision queries and keys of products within a chunk: each
is a number for a token, or for a pair of tokens, and multiplies float32 sums or an operand that is rounded once. With Q
and K as given, factors ``query`` (scale over length), ``key`` (one over length) and ``write`` (beta times key)::

    L     = decay_mask * key Q.. K K^T ..write, strictly lower      A_qk = decay_mask * query Q K^T write, lower
    k_in  = exp_g key K      q_in = exp_g query Q      k_out = exp_g_to_end write K      v_in = V

The gradient of a token's log decay is the sum over all paths that cross it: over this and later tokens of ``Q.dQ + K.dK
- K.dK_write``, and over the writes to the chunk's end. beta enters only through the writing keys, and lengths through
the factors, whose gradients are row by row products that are computed anyway.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.bf16.form import Family, Grads, Plan, Prepared, Shape, Tensors, split_reads
from myfla.ops._delta.bf16.inverse import column_blocks, row_blocks, split_blocks
from myfla.ops._delta.bf16.layout import Places, load_into
from myfla.ops._delta.bf16.products import product, scale_into
from myfla.ops._delta.bf16.static import mark_static
from myfla.utils.dtypes import has_float64
from myfla.utils.tracing import compiling

TINY = 1e-20
"""A write strength below this, except zero, is left out of gradients that it would scale."""


class TokenDecays(NamedTuple):
    """``c`` is the log decay summed from the chunk's start. [M, C, 1] each."""

    exp_g: torch.Tensor  # exp(c_i), from the chunk's start to the token
    exp_g_to_end: torch.Tensor  # exp(c_last - c_i), from the token to the chunk's end
    c: torch.Tensor  # in float64 where the device has it
    beta: torch.Tensor


class Factors(NamedTuple):
    """Factors of the tokens, ``[M, C, 1]`` each."""

    query: torch.Tensor  # scale, divided by the query's length if that is to be one
    key: torch.Tensor  # one over the key's length, or one
    write: torch.Tensor  # beta * key
    exp_g: torch.Tensor
    exp_g_to_end: torch.Tensor
    c: torch.Tensor


def prepare(x: Tensors, plan: Plan) -> Prepared:
    """q, k ``[N, H, K]``, v ``[N, HV, V]``, g and beta ``[N, HV, 1]``."""
    q, k, _, g, beta = x
    layout, run = plan.layout, plan.run
    places, chunk, m, key = layout.places, layout.chunk, layout.matrices, k.shape[2]
    qk, reads = k.new_empty(m, 2 * chunk, key), k.new_empty(m, 2 * chunk, key + chunk)
    wq, A_qk = split_reads(reads, key)
    keys = qk[:, chunk:]
    d = run(token_decays)(places, g, beta, plan.dtype)
    for x_in, out in ((q, qk[:, :chunk]), (k, keys)):  # first, because the following lines read its rows
        run(load_into)(places, x_in, layout.heads, out)
    query = run(scale_queries)(qk[:, :chunk], d.exp_g, plan.scale_tensor(k), plan.l2norm, wq[:, chunk:])
    own, write, k_in, k_out = run(scale_keys)(keys, d, plan.l2norm)
    f = Factors(query, own, write, *d[:3])
    leaves, corners = run(mask_products)(product(qk, keys.transpose(1, 2), plan.dtype), f, A_qk)
    return Prepared(d.exp_g[:, -1:], reads, k_in, k_out, k.new_empty(0), (leaves, corners), (qk, *f))


def prepare_bwd(x: Tensors, plan: Plan, p: Prepared, grads: Grads) -> Tuple[torch.Tensor, ...]:
    """Gradients of q, k, g and beta, in chunks."""
    k, (qk, *factors) = x[1], p.saved
    f, run, chunk, key = Factors(*factors), plan.run, plan.layout.chunk, qk.shape[2]
    A, A_write = (qk.new_empty(qk.shape[0], 2 * chunk, chunk) for _ in range(2))
    for half, factor, strict in ((slice(chunk), f.query, False), (slice(chunk, None), -f.key, True)):
        run(mask_products_bwd)(grads.reads[:, half, key:], f.c, factor, f.write, strict, A[:, half], A_write[:, half])
    inner = product(A, qk[:, chunk:], plan.dtype)
    within = product(A_write.transpose(1, 2), qk, plan.dtype)
    out_dtype = k.dtype if k.shape[1] == plan.layout.heads else plan.dtype  # heads that share a key are summed first
    return run(combine_grads)(
        qk, grads.reads[:, :, :key], inner, grads.k_out, within, grads.h, grads.dh, f, plan.scale_tensor(k),
        plan.l2norm, out_dtype,
    )  # fmt: skip


def token_decays(places: Places, g: torch.Tensor, beta: torch.Tensor, dtype: torch.dtype) -> TokenDecays:
    """The decays and write strengths of all chunks from g and beta ``[N, HV, 1]``, in ``dtype``, exact for every
    gate."""
    mark_static(places, g, beta)
    heads = g.shape[1]
    wide = torch.float64 if has_float64(g.device) else torch.float32
    # Below the lower limit a decay is zero; -inf would turn differences into NaN.
    floor = -1000.0 if dtype == torch.float64 else -120.0
    c = places.load(g, heads).to(wide).clamp(min=floor).cumsum(1)
    return TokenDecays(c.to(dtype).exp(), (c[:, -1:] - c).to(dtype).exp(), c, places.load(beta, heads).to(dtype))


def scale_queries(
    queries: torch.Tensor, exp_g: torch.Tensor, scale: torch.Tensor, l2norm: bool, q_in: torch.Tensor
) -> torch.Tensor:
    """The factor of Q ``[M, C, K]``, ``[M, C, 1]``; writes ``q_in``."""
    mark_static(queries, exp_g, q_in)
    factor = reciprocal_length(queries, exp_g.dtype) * scale if l2norm else scale.expand_as(exp_g).contiguous()
    scale_into(q_in, queries, exp_g * factor)
    return factor


def scale_keys(
    keys: torch.Tensor, d: TokenDecays, l2norm: bool
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The factor of K ``[M, C, K]``, that of the writing keys, k_in and k_out."""
    mark_static(keys, d)
    factor = reciprocal_length(keys, d.exp_g.dtype) if l2norm else torch.ones_like(d.exp_g)
    write = d.beta * factor
    k_in, k_out = (scale_into(torch.empty_like(keys), keys, x) for x in (d.exp_g * factor, d.exp_g_to_end * write))
    return factor, write, k_in, k_out


def mask_products(A: torch.Tensor, f: Factors, A_qk: torch.Tensor) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """From the products of queries over keys with keys ``[M, 2C, C]``: A_qk of the queries, written, and the blocks of
    L of the keys."""
    mark_static(A, f, A_qk)
    chunk = A.shape[2]
    weights = decay_mask(f.c, A.dtype).mul_(f.write.transpose(1, 2))
    if compiling():  # only the blocks are written
        leaves, corners = split_blocks(A[:, chunk:])
        ways = zip([leaves, *corners], row_blocks(f.c), column_blocks(f.c), row_blocks(f.key),
                   column_blocks(f.write))  # fmt: skip
        leaves, *corners = (
            x * (later - earlier).to(x.dtype).exp() * key * write for x, later, earlier, key, write in ways
        )
    else:
        leaves, corners = split_blocks(torch.mul(A[:, chunk:], weights).mul_(f.key))
    scale_into(A_qk, A[:, :chunk], weights.mul_(f.query))
    return leaves, corners


def mask_products_bwd(
    dA: torch.Tensor, c: torch.Tensor, factor: torch.Tensor, write: torch.Tensor, strict: bool, out: torch.Tensor,
    out_write: torch.Tensor,
) -> None:
    """The gradients of keys that are read, and of queries or keys that read them, from the gradient of A_qk, or of L
    with its sign turned. Both use the same numbers, so that terms that cancel in the decays' gradient do so exactly.

    Args:
        dA: ``[M, C, C]``.
        c, write: of `Factors`.
        factor: ``[M, C, 1]``, of Q, or of K with its sign turned.
        strict: whether a token does not see itself.
        out: ``[M, C, C]``, written: with the factor of the writing keys.
        out_write: the same with a beta of one where beta is zero.
    """
    mark_static(dA, c, factor, write, out, out_write)
    inner = decay_mask(c, dA.dtype, strict).mul_(factor).mul_(dA)
    scale_into(out, inner, write.transpose(1, 2))
    scale_into(out_write, inner, write.masked_fill(write.abs() < TINY, 1.0).transpose(1, 2))


def combine_grads(
    qk: torch.Tensor, reads: torch.Tensor, inner: torch.Tensor, dk_out: torch.Tensor, within: torch.Tensor,
    h: torch.Tensor, dh: torch.Tensor, f: Factors, scale: torch.Tensor, l2norm: bool, out_dtype: torch.dtype,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q and k ``[M, C, K]`` in ``out_dtype``, and of g and beta ``[M, C, 1]``.

    beta's gradient is that of the writing keys divided by beta; where beta is zero it is that of the keys with a beta
    of one.

    Args:
        qk: ``[M, 2C, K]``, Q over K.
        reads: ``[M, 2C, K]``, gradient of q_in over that of k_in with its sign turned.
        inner: ``[M, 2C, K]``, gradient of Q over K from within the chunk.
        dk_out, within: ``[M, C, K]``, of the writing keys: of k_out, and from within the chunk.
        h, dh: ``[M, K, V]``, each chunk's incoming state and its outgoing one's gradient.
    """
    mark_static(qk, reads, inner, dk_out, within, h, dh, f)
    chunk = qk.shape[1] // 2
    queries, keys = qk.split(chunk, 1)
    write = f.write.masked_fill(f.write.abs() < TINY, 1.0)
    writes = f.write / write  # one, or zero where beta is
    dqueries = torch.addcmul(inner[:, :chunk], reads[:, :chunk], f.exp_g * f.query)
    dkeys = torch.addcmul(inner[:, chunk:], reads[:, chunk:], -f.exp_g * f.key)
    dk_end = dk_out * (f.exp_g_to_end * write)
    q_dq, k_dk, k_dk_end = dot(queries, dqueries), dot(keys, dkeys), dot(keys, dk_end)
    dk_write = dk_end + within
    k_dk_write = dot(keys, dk_write)
    dc = q_dq + k_dk - k_dk_write * writes
    h_dh = (h.to(dh.dtype) * dh).sum((1, 2), dtype=k_dk_end.dtype).view(-1, 1, 1)
    dc_last = (k_dk_end * writes).sum(1, keepdim=True) + h_dh * f.exp_g[:, -1:]
    dg = dc.flip(1).cumsum(1).flip(1) + dc_last
    dbeta = k_dk_write * (f.key / write)
    dkeys = torch.addcmul(dkeys, dk_write, writes)
    if l2norm:
        dqueries = _minus(dqueries, queries, q_dq * (f.query / scale).square())
        dkeys = _minus(dkeys, keys, (k_dk + k_dk_write * writes) * f.key.square())
    return dqueries.to(out_dtype), dkeys.to(out_dtype), dg, dbeta


def decay_mask(c: torch.Tensor, dtype: torch.dtype, strict: bool = False) -> torch.Tensor:
    """``exp(c_i - c_j)`` for ``j <= i``, else zero, ``[M, C, C]``: each the exponential of one difference.

    `chunk.decay.decay_mask` also keeps exponentials from underflowing, which is slow on a CPU alone.

    Args:
        c: ``[M, C, 1]``, finite.
        dtype: of the result.
        strict: leave out the diagonal.
    """
    diagonal = -1 if strict else 0
    later, earlier = c, c.transpose(1, 2)
    if compiling():
        return (later - earlier).to(dtype).exp().tril(diagonal)
    # The difference is computed in c's dtype and stored in the other, without a pass over and memory for the wider one.
    mask = torch.empty((*c.shape[:2], c.shape[1]), dtype=dtype, device=c.device)
    return torch.sub(later, earlier, out=mask).exp_().tril_(diagonal)


def reciprocal_length(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``rsqrt(sum(x^2) + 1e-6)`` of the last axis, kept with size one: the factor that makes a row's length one."""
    if compiling():
        return (x.to(dtype).square().sum(-1, keepdim=True) + 1e-6).rsqrt()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return (length * length).add_(1e-6).rsqrt_()


def dot(a: torch.Tensor, b: torch.Tensor, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
    """Row by row ``a . b``: ``[..., D]`` twice to ``[..., 1]``."""
    if compiling():  # in registers as wide as the sum
        a, b = a.to(dtype or b.dtype), b.to(dtype or b.dtype)
    return (a * b).sum(-1, keepdim=True, dtype=dtype)


def _minus(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``x - a b``, in x's dtype."""
    a = a if a.is_cuda else a.to(x.dtype)  # on a CPU PyTorch 1.12 does not mix them
    return torch.addcmul(x, a, b, value=-1)


def _saved(chunk: int, key: int, v: torch.Tensor, lower_bound: Optional[float]) -> List[Shape]:
    """Shapes of ``Prepared.saved``."""
    wide = torch.float64 if has_float64(v.device) else torch.float32
    return [(1, (2 * chunk, key), v.dtype), *[(1, (chunk, 1), torch.float32)] * 5, (1, (chunk, 1), wide)]


GATED_DELTA = Family("gated_delta_rule", ("q", "k", "v", "g", "beta"), False, False, prepare, prepare_bwd, _saved)

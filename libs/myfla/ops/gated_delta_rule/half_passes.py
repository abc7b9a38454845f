"""The elementwise passes between the products of the half-precision form, each in plain operations on its arguments.

They are what a compiler is for: of each it makes one or two kernels that read and write every matrix once. Nothing is
written into an argument unless the function says so. Without a compiler they run as they stand.
"""

from typing import List, Optional, Tuple

import torch

from myfla.ops.common.half_inverse import column_blocks, join_blocks, row_blocks, split_blocks
from myfla.ops.common.half_products import put
from myfla.ops.common.half_tokens import Cut
from myfla.ops.gated_delta_rule.half_factors import Decays, Factors, pair_decay, reciprocal_length
from myfla.utils.tracing import compiling

TINY = 1e-20
"""A write strength below this, but for zero, is left out of gradients that it would scale."""


def load_queries(
    q: torch.Tensor, out: torch.Tensor, reads: torch.Tensor, cut: Cut, rise: torch.Tensor, scale: float,
    unit: bool,
) -> torch.Tensor:
    """Cut ``q [B, T, H, K]`` into the chunks ``out [M, C, K]``, and write ``rise q`` into ``reads``.

    Returns:
        the factor of Q.
    """
    queries = cut.load(q, out)
    factor = reciprocal_length(queries, rise.dtype) * scale if unit else torch.full_like(rise, scale)
    put(reads, queries, rise * factor)
    return factor


def load_keys(
    k: torch.Tensor, out: torch.Tensor, more: Optional[torch.Tensor], cut: Cut, d: Decays, unit: bool
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut ``k [B, T, H, K]`` into the chunks ``out`` and ``more``, if given, both ``[M, C, K]``.

    Returns:
        their factor, that of the writer keys, and ``fall k~``.
    """
    keys = cut.load(k, out)
    if more is not None:
        more.copy_(keys)
    factor = reciprocal_length(keys, d.rise.dtype) if unit else torch.ones_like(d.rise)
    write = d.strength * factor
    return factor, write, put(torch.empty_like(keys), keys, d.fall * write)


def weigh(sums: torch.Tensor, f: Factors, low: torch.dtype) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
    """Queries and keys against keys ``[M, 2C, C]``: of the first ``pair * q k~^T`` in ``low``, of the others the blocks
    of ``pair * k k~^T`` that the inverse reads."""
    chunk = sums.shape[2]
    weights = pair_decay(f.sums, sums.dtype).mul_(f.write.transpose(1, 2))
    if compiling():  # nothing but the blocks is ever written
        leaves, corners = split_blocks(sums[:, chunk:])
        ways = zip([leaves, *corners], row_blocks(f.sums), column_blocks(f.sums), row_blocks(f.key),
                   column_blocks(f.write))  # fmt: skip
        leaves, *corners = (
            x * (later - earlier).to(x.dtype).exp() * key * write for x, later, earlier, key, write in ways
        )
    else:
        leaves, corners = split_blocks(torch.mul(sums[:, chunk:], weights).mul_(f.key))
    attend = put(torch.empty_like(weights, dtype=low), sums[:, :chunk], weights.mul_(f.query))
    return attend, leaves, corners


def finish_inverse(
    blocks: torch.Tensor, corner: torch.Tensor, f: Factors, low: torch.dtype
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The inverse ``T``, and ``-T rise`` times the keys' own factor, ``[M, C, C]`` in ``low``."""
    full = join_blocks(blocks, corner)
    scaled = put(torch.empty_like(full, dtype=low), full, (-f.rise * f.key).transpose(1, 2))
    return full.to(low), scaled


def advance(state: torch.Tensor, whole: torch.Tensor, low: torch.Tensor) -> None:
    """``low <- S;  S <- whole S``."""
    low.copy_(state)
    state.mul_(whole)


def scale_rows(
    outer: torch.Tensor, delta: torch.Tensor, f: Factors, out: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``[dO; eta] [M, 2C, V]`` with the factors of the rows of Q and of K into ``out``.

    beta's gradient is that of K~ over beta, and where beta is zero that of K~ with a beta of one.

    Returns:
        ``fall delta``; the factor of the writer keys, one where beta is zero; and zero there, one elsewhere.
    """
    write = f.write.masked_fill(f.write.abs() < TINY, 1.0)
    rows = torch.stack((f.rise * f.query, -f.rise * f.key), dim=1).flatten(1, 2)
    put(out, outer, rows, rough=True)
    return put(torch.empty_like(delta), delta, f.fall * write, rough=True), write, f.write / write


def weigh_back(
    inner: torch.Tensor, sums: torch.Tensor, row: torch.Tensor, column: torch.Tensor, write: torch.Tensor,
    strict: bool, out: torch.Tensor, pairs: torch.Tensor,
) -> None:
    """X or Y into ``out`` and ``pairs``. Both get the same numbers, so that what cancels in the decays' gradient
    cancels exactly.

    Args:
        inner: ``[M, C, C]``, product of dO or eta with delta.
        sums: of `Factors`.
        row: ``[M, C, 1]``, the factor of Q or of -K.
        column: that of the writer keys, for ``out``.
        write: the same, and one where beta is zero, for ``pairs``.
        strict: whether a token does not see itself.
    """
    inner = pair_decay(sums, inner.dtype, strict).mul_(row).mul_(inner)
    put(out, inner, column.transpose(1, 2))
    put(pairs, inner, write.transpose(1, 2))


def collect(
    both: torch.Tensor, dboth: torch.Tensor, handing: torch.Tensor, within: torch.Tensor, states: torch.Tensor,
    dstates: torch.Tensor, f: Factors, write: torch.Tensor, counts: torch.Tensor, scale: float, cut: Cut, unit: bool,
    like: Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, g and beta, in the shapes and dtypes of ``like``.

    Args:
        both: ``[M, 2C, K]``.
        dboth: ``[M, 2C, K]``, its gradient but for what comes through the writer keys and the lengths.
        handing, within: ``[M, C, K]``, gradient of the writer keys from the chunk's end, and from within the chunk.
        states, dstates: ``[M, V, K]``, each chunk's incoming state and its outgoing one's gradient.
        write, counts: of `scale_rows`.
    """
    (queries, keys), (dqueries, dkeys) = both.split(cut.chunk, 1), dboth.split(cut.chunk, 1)
    asking, asked, hand = dot(queries, dqueries), dot(keys, dkeys), dot(keys, handing)
    dwriter = handing + within
    across = dot(keys, dwriter)
    flow = asking + asked - across * counts
    ending = dot(states.flatten(1), dstates.flatten(1), hand.dtype)
    last = (hand * counts).sum(1) + ending * f.rise[:, -1]  # f.whole; PyTorch 2.4 compiles no property of a tuple
    dg = flow.flip(1).cumsum(1).flip(1) + last.unsqueeze(1)
    dbeta = across * (f.key / write)
    dkeys = torch.addcmul(dkeys, dwriter, counts)
    if unit:
        dqueries = minus(dqueries, queries, asking * (f.query / scale).square())
        dkeys = minus(dkeys, keys, (asked + across * counts) * f.key.square())
    q, k, g, beta = like
    dg, dbeta = (cut.store(x, y.unsqueeze(-1)).squeeze(-1) for x, y in ((dg, g), (dbeta, beta)))
    return cut.store(dqueries, q), cut.store(dkeys, k), dg, dbeta


def minus(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``x - a b``, in x's dtype."""
    a = a if a.is_cuda else a.to(x.dtype)  # on a CPU PyTorch 1.12 does not mix them
    return torch.addcmul(x, a, b, value=-1)


def dot(a: torch.Tensor, b: torch.Tensor, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
    """Row by row ``a . b``: ``[..., D]`` twice to ``[..., 1]``."""
    if compiling():  # in registers as wide as the sum
        a, b = a.to(dtype or b.dtype), b.to(dtype or b.dtype)
    return (a * b).sum(-1, keepdim=True, dtype=dtype)

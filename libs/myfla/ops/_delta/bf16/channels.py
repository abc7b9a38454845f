"""Common code of the families with a decay for each key channel, DPLR and KDA.

Of each token ``q`` and ``a`` read, and W kinds write: ``b``, and with a second pair ``k``. a sees earlier tokens only.
With ``c`` the log decay summed from the chunk's start, and ``c_a`` the same or (DPLR) without a's step::

    q_in = scale exp(c) q     k_in = -exp(c_a) a     k_out = exp(c_last - c) [b; k]
    A    = [q; a] against [b; k], each product of two tokens with the decay between them (`subchunks`);   L = -A_ab

The operands of A are float32: rounded ones would make the largest of all errors. The gradient of a step's log decay is
the sum over all paths that cross it. The contribution of a path is an operand, with the rounding that the product read,
times its gradient, so that terms that cancel do so exactly.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.bf16.form import Grads, Plan, Prepared, Shape, split_reads
from myfla.ops._delta.bf16.inverse import split_blocks
from myfla.ops._delta.bf16.layout import Places
from myfla.ops._delta.bf16.products import product, scale_into
from myfla.ops._delta.bf16.static import mark_static
from myfla.ops._delta.subchunks import SubChunks, choose_subchunks, join_squares, split_squares
from myfla.utils.tracing import compiling


class Operands(NamedTuple):
    """The scaled tokens of all chunks; written by `scale_tokens`."""

    reads: torch.Tensor  # [M, 2C, K + W C], as `Prepared` has it
    k_in: torch.Tensor  # [M, C, K]
    k_out: torch.Tensor  # [M, W C, K]
    earlier: Tuple[torch.Tensor, ...]  # of each sub-chunk pair [M places, W n, K]: what is read, to the reference
    later: Tuple[torch.Tensor, ...]  # [M places, 2n, K]: q over a, from it


def allocate_operands(like: torch.Tensor, kinds: int, plan: Plan) -> Tuple[SubChunks, Operands]:
    """The split of a chunk, and the memory for the scaled tokens of ``like [N, H, K]``, W = kinds."""
    layout, key = plan.layout, like.shape[2]
    m, chunk = layout.matrices, layout.chunk
    split = choose_subchunks(chunk, plan.dtype, plan.lower_bound)
    reads = like.new_empty(m, 2 * chunk, key + kinds * chunk)
    k_in, k_out = (like.new_empty(m, rows * chunk, key) for rows in (1, kinds))
    earlier, later = (
        tuple(like.new_empty(m * x.places(chunk), n * x.size, key, dtype=plan.dtype) for x in split.pairs())
        for n in (kinds, 2)
    )
    return split, Operands(reads, k_in, k_out, earlier, later)


def chunk_products(
    plan: Plan, split: SubChunks, c: torch.Tensor, operands: Operands, saved: Tuple[torch.Tensor, ...] = ()
) -> Prepared:
    """The products of the scaled tokens."""
    squares = [product(y, x.transpose(1, 2), plan.dtype) for x, y in zip(operands.earlier, operands.later)]
    A_qk = split_reads(operands.reads, operands.k_in.shape[2])[1]
    A_v, leaves, corners = plan.run(join_products)(squares, split, A_qk)
    g_last = c[:, -1:].exp().transpose(1, 2)
    saved = (c, *operands.earlier, *operands.later, *saved)
    return Prepared(g_last, operands.reads, operands.k_in, operands.k_out, A_v, (leaves, corners), saved)


class ChannelGrads(NamedTuple):
    """The first gradients of a family's backward."""

    split: SubChunks
    c: torch.Tensor  # [M, C, K]
    reads: torch.Tensor  # [M, 2C, K]  gradient of q_in over that of k_in with its sign turned
    k_out: torch.Tensor  # [M, W C, K]  its gradient
    operands: Operands
    dearlier: Tuple[torch.Tensor, ...]
    dlater: Tuple[torch.Tensor, ...]


def operand_grads(plan: Plan, p: Prepared, grads: Grads) -> Tuple[ChannelGrads, Tuple[torch.Tensor, ...]]:
    """The gradients of the products' operands; also the other tensors that the family has saved."""
    split = choose_subchunks(plan.layout.chunk, plan.dtype, plan.lower_bound)
    key, half = p.k_in.shape[2], len(split.pairs())
    c, earlier, later = p.saved[0], p.saved[1 : 1 + half], p.saved[1 + half : 1 + 2 * half]
    dearlier, dlater = [], []
    for x, y, dsquare in zip(earlier, later, plan.run(split_products)(grads.reads[:, :, key:], split)):
        dearlier.append(product(dsquare.transpose(1, 2), y, plan.dtype))
        dlater.append(product(dsquare, x, plan.dtype))
    operands = Operands(p.reads, p.k_in, p.k_out, earlier, later)
    own, dreads = p.saved[1 + 2 * half :], grads.reads[:, :, :key]
    return ChannelGrads(split, c, dreads, grads.k_out, operands, tuple(dearlier), tuple(dlater)), own


def sum_decays(places: Places, g: torch.Tensor, split: SubChunks, dtype: torch.dtype) -> torch.Tensor:
    """``c [M, C, K]``, the log decays ``g [N, HV, K]`` summed from the start of their chunk."""
    mark_static(places, g, split)
    return places.load(g, g.shape[1]).to(dtype).clamp(min=split.floor(dtype)).cumsum(1)


def scale_tokens(
    reading: torch.Tensor, written: torch.Tensor, c: torch.Tensor, before: bool, scale: torch.Tensor, split: SubChunks,
    operands: Operands,
) -> None:
    """Scale tokens by the decays to and from all their references.

    Args:
        reading: ``[M, 2, C, K]``, q over a.
        written: ``[M, W, C, K]``, b over k.
        c: of `sum_decays`.
        before: whether a sees the state before its own step decays it.
        scale: ``[1]``, factor on q.
        operands: the result, written.
    """
    kinds, chunk, key = written.shape[1], split.chunk, c.shape[2]
    from_start = _from_start(c, before)
    scale_into(operands.k_out.view(written.shape), written, (c[:, -1:] - c).exp().unsqueeze(1))
    scale_into(operands.reads[:, chunk:, :key], reading[:, 0], from_start[:, 0].exp() * scale)
    scale_into(operands.k_in, reading[:, 1], -from_start[:, 1].exp())
    for pair, earlier, later in zip(split.pairs(), operands.earlier, operands.later):
        decay, since = pair.decays(c, from_start)
        scale_into(pair.by_kind(earlier, chunk, kinds), pair.sides(written)[0], decay)
        scale_into(pair.by_kind(later, chunk, 2), pair.sides(reading)[1], _scaled(since, scale))


def join_products(
    squares: List[torch.Tensor], split: SubChunks, A_qk: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, List[torch.Tensor]]:
    """The products ``[M places, 2n, W n]`` of all sub-chunk pairs put together.

    Args:
        A_qk: ``[M, C, W C]``, written: the factors with which q reads.

    Returns:
        with a second pair A_v ``[M, 2C, C]``, the factors with which q and a read v, q over a; otherwise nothing. And
        the blocks of ``L = -A_ab``.
    """
    mark_static(squares, split, A_qk)
    whole = join_squares(squares, split)
    leaves, corners = split_blocks(whole[:, 1, :, 0].neg())
    A_qk.copy_(whole[:, 0].flatten(2, 3))
    pair = whole.shape[3] == 2
    A_v = whole[:, :, :, 1].to(A_qk.dtype).contiguous().flatten(1, 2) if pair else A_qk.new_empty(0)
    return A_v, leaves, corners


def split_products(dA: torch.Tensor, split: SubChunks) -> List[torch.Tensor]:
    """The inverse of `join_products`: of the gradient ``dA [M, 2C, W C]`` every sub-chunk pair's part."""
    mark_static(dA, split)
    return split_squares(dA.unflatten(2, (-1, split.chunk)).unflatten(1, (2, -1)), split)


def token_grads(
    x: ChannelGrads, before: bool, scale: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the tokens, and the terms of the decays' gradient.

    Returns:
        those of q over a ``[M, 2, C, K]`` and of b over k ``[M, W, C, K]``; the terms that a token adds to its step and
        all earlier ones, ``[M, C, K]``, and those of all writes to the chunk's end, ``[M, 1, K]``.
    """
    split, c, operands = x.split, x.c, x.operands
    chunk = split.chunk
    kinds = operands.k_out.shape[1] // chunk
    from_start, to_end = _from_start(c, before), (c[:, -1:] - c).exp().unsqueeze(1)
    dleft, dk_out = x.reads.unflatten(1, (2, chunk)), x.k_out.unflatten(1, (kinds, chunk))
    dwritten, dreading = dk_out * to_end, dleft * _scaled(from_start.exp(), scale)
    dc_written = (operands.k_out.unflatten(1, (kinds, chunk)) * dk_out).sum(1)
    dc_read = torch.stack((operands.reads[:, chunk:, : c.shape[2]], -operands.k_in), dim=1) * dleft
    dc_last = dc_written.sum(1, keepdim=True)
    for pair, *parts in zip(split.pairs(), operands.earlier, operands.later, x.dearlier, x.dlater):
        earlier, dearlier = (pair.by_kind(t, chunk, kinds) for t in parts[::2])
        later, dlater = (pair.by_kind(t, chunk, 2) for t in parts[1::2])
        decay, since = pair.decays(c, from_start)
        dwritten = pair.added(dwritten, 0, dearlier * decay)
        dreading = pair.added(dreading, 1, dlater * _scaled(since, scale))
        dc_written = pair.added(dc_written, 0, (earlier * dearlier).sum(1))
        dc_read = pair.added(dc_read, 1, later * dlater)
    # Where a reads the state before its step, its terms begin a step earlier.
    second = torch.nn.functional.pad(dc_read[:, 1, 1:], (0, 0, 0, 1)) if before else dc_read[:, 1]
    return dreading, dwritten, dc_read[:, 0] + second - dc_written, dc_last


def decay_grad(
    places: Places, dc: torch.Tensor, sums: torch.Tensor, dc_last: torch.Tensor, h: torch.Tensor, dh: torch.Tensor,
    c: torch.Tensor, g: torch.Tensor, split: SubChunks,
) -> torch.Tensor:
    """Gradient of ``g [N, HV, K]`` in chunks ``[M, C, K]``, zero where a step counts as the lower limit.

    Args:
        dc, dc_last: of `token_grads`.
        sums: ``dc`` summed from the chunk's start.
        h, dh: ``[M, K, V]``, each chunk's incoming state and its outgoing one's gradient.
        c: of `sum_decays`.
    """
    mark_static(places, dc, sums, dc_last, h, dh, c, g, split)
    ends = (h.to(c.dtype) * dh).sum(2).unsqueeze(1) * c[:, -1:].exp()
    dg = dc - sums + (sums[:, -1:] + dc_last + ends)
    return torch.where(places.load(g, g.shape[1]) < split.floor(c.dtype), torch.zeros_like(dg), dg)


def saved_shapes(kinds: int, chunk: int, key: int, lower_bound: Optional[float]) -> List[Shape]:
    """Shapes of the tensors that `chunk_products` saves, without the family's."""
    pairs = choose_subchunks(chunk, torch.float32, lower_bound).pairs()
    operands = [(x.places(chunk), (n * x.size, key), torch.float32) for n in (kinds, 2) for x in pairs]
    return [(1, (chunk, key), torch.float32), *operands]


def load_kinds(places: Places, tensors: Sequence[torch.Tensor], heads: int) -> torch.Tensor:
    """Tokens ``[N, H, K]`` of one dtype as chunks ``[M, kinds, C, K]``."""
    if compiling():
        return torch.stack([places.load(x, heads) for x in tensors], dim=1)
    one = tensors[0]
    count, chunk = places.token.shape
    out = one.new_empty(count * heads, len(tensors), chunk, one.shape[2])
    for x, part in zip(tensors, out.unbind(1)):
        part.copy_(places.load(x, heads))
    return out


def _from_start(c: torch.Tensor, before: bool) -> torch.Tensor:
    """``[M, 2, C, K]``: for q and for a the log decay from the chunk's start."""
    return torch.stack((c, torch.nn.functional.pad(c[:, :-1], (0, 0, 1, 0)) if before else c), dim=1)


def _scaled(factor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Multiply q's half of ``[M, 2, ...]``, q and a, by the scale, in place."""
    factor[:, 0].mul_(scale)
    return factor

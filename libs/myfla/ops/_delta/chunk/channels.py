"""Decays of every key channel inside a chunk, for every family that has them.

A family stacks the kinds of tokens that read (``left [M, R C, K]``: queries, then keys) over each other, and those that
write (``right [M, S C, K]``). With ``c_t`` the log decay summed from the chunk's start, per channel::

    left   = left exp(c)          (exp(c) without token t's own decay for rows that read before it)
    out    = right exp(c_last - c)
    A      = sum over channels of left_t right_s exp(c_t - c_s)          cut to what each row sees

Splitting ``exp(c_t - c_s)`` into ``exp(c_t)`` and ``exp(-c_s)`` is exact to rounding while ``|c|`` stays within `LIMIT`
in the chunk (the RWKV-7 layer's decay, at least -0.6065 a step, sums to 39 over 64 tokens). In matrices beyond, the
tokens from the first that leaves the limit are worked out again by `levels`, right for every decay down to -inf.
"""

import math
from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.chunk.decay import wide_dtype
from myfla.ops._delta.chunk.levels import Levels
from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import Buffers

__all__ = ["LIMIT", "Channels", "Tokens", "token_grads", "weigh_tokens"]

LIMIT = 40.0
"""Largest summed log decay, up or down, that a chunk may have on the quick way: both factors stay below exp(40)."""


class Tokens(NamedTuple):
    """What a family stacks; written over."""

    left: torch.Tensor  # [M, R C, K]
    right: torch.Tensor  # [M, S C, K]
    gk: torch.Tensor  # [B, T, HV, K]  log decays
    before: bool  # whether the second kind of rows reads before its own decay


class Channels(NamedTuple):
    """The same, weighed."""

    exp_g: torch.Tensor  # [M, C + 1, K]  exp(c): before the first token, then after each
    left: torch.Tensor  # [M, R C, K]
    right: torch.Tensor  # [M, S C, K]  right exp(-c)
    out: torch.Tensor  # [M, S C, K]
    A: torch.Tensor  # [M, R C, S C]
    g_last: torch.Tensor  # [M, K, 1]
    levels: Optional[Levels]  # of the matrices beyond the limit


def exp_decays(block: Block, gk: torch.Tensor, exp_g: torch.Tensor) -> Optional[torch.Tensor]:
    """Fill ``exp_g [M, C + 1, K]``; returns the indices of the matrices beyond the limit, or None.

    Summed in float64 where there is one: rounding errors of a float32 sum would be the largest of all. Every matrix is
    judged by itself, so that no row and no earlier token feels another's decay; a NaN counts as within.
    """
    shape = (exp_g.shape[0], block.chunk, gk.shape[3])
    steps = block.load(gk, gk.new_empty(shape, dtype=wide_dtype(gk.device, exp_g.dtype)))
    exp_g[:, :1].fill_(1.0)
    exp_g[:, 1:].copy_(torch.cumsum(steps, 1, out=steps).exp_())
    flat = exp_g.flatten(1)
    strong = beyond_limit(flat.amin(1)).logical_or_(beyond_limit(flat.amax(1)))
    if not bool(strong.any()):
        return None
    exp_g.clamp_(min=1e-30, max=1e30)
    return strong.nonzero(as_tuple=True)[0]


def beyond_limit(exp_g: torch.Tensor) -> torch.Tensor:
    """Where ``exp(c)`` has left the limit."""
    return (exp_g < math.exp(-LIMIT)).logical_or_(exp_g > math.exp(LIMIT))


def weigh_tokens(
    block: Block, t: Tokens, exp_g: torch.Tensor, strong: Optional[torch.Tensor], out: torch.Tensor, A: torch.Tensor
) -> Channels:
    """Weigh the tokens of a block, in place, and multiply rows and columns.

    Args:
        block: which chunks.
        t: the tokens.
        exp_g, strong: of `exp_decays`.
        out: ``[M, S C, K]``, written.
        A: ``[M, R C, S C]``, written.
    """
    chunk, levels = block.chunk, None
    if strong is not None:
        late = beyond_limit(exp_g[:, 1:].index_select(0, strong)).any(2).cumsum(1) > 0
        raw = (x.index_select(0, strong) for x in (t.left, t.right))
        levels = Levels(block, t.gk, strong, late, t.before, *raw)
    before, after, last = exp_g[:, :-1], exp_g[:, 1:], exp_g[:, chunk:]
    for row in range(t.left.shape[1] // chunk):
        t.left[:, row * chunk : (row + 1) * chunk].mul_(before if row and t.before else after)
    _kinds(t.right, chunk).div_(after.unsqueeze(1))
    torch.mul(t.right, last, out=out)
    torch.bmm(t.left, t.right.transpose(1, 2), out=A)
    g_last = last.transpose(1, 2).contiguous()
    if levels is not None:
        levels.replace(t.left, out, g_last, A)
    return Channels(exp_g, t.left, t.right, out, keep_seen(A, chunk), g_last, levels)


def keep_seen(A: torch.Tensor, chunk: int) -> torch.Tensor:
    """Zero, in place, the future in ``[M, R C, S C]``: above the diagonal for queries, on it too for keys."""
    for row in range(A.shape[1] // chunk):
        for column in range(A.shape[2] // chunk):
            A[:, row * chunk : (row + 1) * chunk, column * chunk : (column + 1) * chunk].tril_(-1 if row else 0)
    return A


def token_grads(
    c: Channels, before: bool, chunk: int, dA: torch.Tensor, dleft: torch.Tensor, dout: torch.Tensor,
    dg_last: torch.Tensor, buffers: Buffers,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the tokens as the family stacked them, and of gk ``[M, C, K]``.

    A step's log decay lies on every path that crosses it: reads of the incoming state by tokens from it on, hand-overs
    by tokens before it, the state's own way, and pairs of tokens on either side of it, as the difference
    ``left dleft - right dright`` summed from it on. What no decay scales, a token's read of itself and the last one's
    hand-over, never enters, so that the difference is exact to rounding for strong decays too.

    Args:
        c: what `weigh_tokens` gave.
        before: as `Tokens` has it.
        chunk: C.
        dA: ``[M, R C, S C]`` gradient of A, not yet cut; overwritten.
        dleft: ``[M, R C, K]`` gradient of left through the state; overwritten.
        dout: ``[M, S C, K]`` gradient of out; overwritten.
        dg_last: ``[M, K, 1]`` gradient of g_last.
        buffers: for what comes in between.
    """
    kinds = dA.shape[2] // chunk
    ends = (dg_last * c.g_last).transpose(1, 2)
    keep_seen(dA, chunk)
    exact = None if c.levels is None else c.levels.grads(dA, dleft, dout, ends)
    own = []
    for kind in range(kinds):
        diagonal = dA[:, :chunk, kind * chunk : (kind + 1) * chunk].diagonal(0, 1, 2)
        own.append(diagonal.clone().unsqueeze(-1))
        diagonal.zero_()
    dleft.baddbmm_(dA, c.right)
    dright = torch.bmm(dA.transpose(1, 2), c.left, out=buffers["dright"])
    flow = buffers["flow"]
    crossing, handed = flow[:, :chunk], flow[:, chunk:]
    queries, dqueries = c.left[:, :chunk], dleft[:, :chunk]
    torch.mul(queries, dqueries, out=crossing)
    for row in range(1, dleft.shape[1] // chunk):
        at = slice(row * chunk + before, (row + 1) * chunk)
        crossing[:, : chunk - before].addcmul_(c.left[:, at], dleft[:, at])
    rights, drights, douts, outs = (_kinds(x, chunk) for x in (c.right, dright, dout, c.out))
    for kind in range(kinds):
        crossing.addcmul_(rights[:, kind], drights[:, kind], value=-1)
        if kind:
            handed.addcmul_(outs[:, kind], douts[:, kind])
        else:
            torch.mul(outs[:, kind], douts[:, kind], out=handed)
    ones = torch.ones(chunk, chunk, dtype=flow.dtype, device=flow.device)
    sums = torch.cat((ones.triu(), ones.tril(-1)), dim=1).expand(flow.shape[0], -1, -1)
    dgk = torch.bmm(sums, flow, out=buffers["dgk"]).add_(ends)
    dright.addcmul_(dout, c.exp_g[:, chunk:])
    for kind in range(kinds):
        dqueries.addcmul_(rights[:, kind], own[kind])
        drights[:, kind].addcmul_(queries, own[kind])
    for row in range(dleft.shape[1] // chunk):
        dleft[:, row * chunk : (row + 1) * chunk].mul_(c.exp_g[:, :-1] if row and before else c.exp_g[:, 1:])
    drights.div_(c.exp_g[:, 1:].unsqueeze(1))
    if c.levels is not None and exact is not None:
        for found, right in zip((dleft, dright, dgk), exact):
            found.index_copy_(0, c.levels.strong, right)
    return dleft, dright, dgk


def _kinds(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """``[M, S C, K]`` as ``[M, S, C, K]``."""
    return x.view(x.shape[0], -1, chunk, x.shape[2])

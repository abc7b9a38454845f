"""The decays inside a chunk, and their gradients, for the families with a decay for every key channel.

A family stacks its R kinds of reading tokens (``left [M, R C, K]``: queries, then keys) over each other, and its S
kinds of writing tokens (``right [M, S C, K]``). With ``c_t`` the log decay summed from the chunk's start, per channel::

    left   = left exp(c)          (exp(c) without token t's own decay for rows that read before it)
    out    = right exp(c_last - c)
    A      = sum over channels of left_t right_s exp(c_t - c_s)          zero for what a row does not see

Splitting ``exp(c_t - c_s)`` into ``exp(c_t)`` and ``exp(-c_s)`` is exact to rounding while ``|c|`` stays within `LIMIT`
in the chunk (the RWKV-7 layer's decay, at least -0.6065 a step, sums to 39 over 64 tokens). In the other matrices,
tokens from the first one beyond the limit on are computed again by `chunk.strong_decays`, which is correct for every
decay down to -inf and takes about four times as long. `bf16.channels` uses that for every chunk, so that no value has
to be read back from the GPU.
"""

import math
from typing import Callable, NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.chunk.decay import wide_dtype
from myfla.ops._delta.chunk.recurrence import ChunkGrads
from myfla.ops._delta.chunk.strong_decays import StrongDecays
from myfla.ops._delta.families.base import Family
from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import BlockShapes, Buffers

__all__ = ["LIMIT", "ChannelFamily", "Channels", "token_grads"]

LIMIT = 40.0
"""Largest absolute sum of log decays with which a chunk is split into two factors: both stay below exp(40)."""

Load = Callable[[torch.Tensor, torch.Tensor], None]
"""Fills ``left [M, R C, K]`` and ``right [M, S C, K]`` with tokens that are not scaled."""

RECOMPUTABLE = ("exp_g", "left", "right", "out_keys", "A")
"""Tensors that are saved for short inputs only."""


class Channels(NamedTuple):
    """A block's tokens, scaled."""

    exp_g: torch.Tensor  # [M, C + 1, K]  exp(c): before the first token, then after each
    left: torch.Tensor  # [M, R C, K]
    right: torch.Tensor  # [M, S C, K]  right exp(-c)
    out: torch.Tensor  # [M, S C, K]
    A: torch.Tensor  # [M, R C, S C]
    g_last: torch.Tensor  # [M, K, 1]
    strong: Optional[StrongDecays]  # the matrices beyond the limit


class ChannelFamily(Family):
    """Base class of these families.

    Attributes:
        rows, columns: R and S, how many kinds of tokens read and write.
        before: whether the second kind of rows reads before its own decay.
    """

    largest_chunk = 32  # computation within a chunk, and the sum of its decays, grow faster than in other families
    pads_heads = True
    rows = 2
    columns = 1
    before = False

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        left, right = (self.rows * chunk, key), (self.columns * chunk, key)
        return BlockShapes(
            residuals={"strong": (1, 1)},
            recomputable={"exp_g": (chunk + 1, key), "left": left, "right": right, "out_keys": right,
                   "A": (self.rows * chunk, self.columns * chunk)},
            forward={"v_in": (chunk, value)},
            backward={"dA": (self.rows * chunk, self.columns * chunk), "dright": right,
                      "dc": (2 * chunk, key), "dgk": (chunk, key)},
        )  # fmt: skip

    def scaled_tokens(self, block: Block, gk: torch.Tensor, load: Load, buffers: Buffers) -> Channels:
        """The block's tokens, scaled by their decays; saved ones are used as they are."""
        chunk, strong = block.chunk, buffers["strong"]
        if buffers.has_recomputable and not bool(strong.any()):
            exp_g, left, right, out, A = (buffers[name] for name in RECOMPUTABLE)
            return Channels(exp_g, left, right, out, A, exp_g[:, chunk:].transpose(1, 2).contiguous(), None)
        # Saved tensors are not changed.
        exp_g, left, right, out, A = (
            torch.empty_like(buffers[name]) if buffers.has_recomputable else buffers[name] for name in RECOMPUTABLE
        )
        load(left, right)
        beyond = exp_decays(block, gk, exp_g)
        if not buffers.backward:
            strong.zero_()
            if beyond is not None:
                strong[beyond] = 1
        return scale_tokens(block, left, right, gk, self.before, exp_g, beyond, out, A)

    def token_grads(self, block: Block, p: Channels, d: ChunkGrads, buffers: Buffers) -> Tuple[torch.Tensor, ...]:
        """`token_grads` where one kind of tokens writes: gradients of left ``[M, R C, K]``, of right ``[M, C, K]``, of
        gk."""
        dA = torch.bmm(d.out, d.v_new.transpose(1, 2), out=buffers["dA"])
        return token_grads(p, self.before, block.chunk, dA, d.qk_in, d.k_out, d.g_last, buffers)


def exp_decays(block: Block, gk: torch.Tensor, exp_g: torch.Tensor) -> Optional[torch.Tensor]:
    """Fill ``exp_g [M, C + 1, K]``; returns the indices of the matrices beyond the limit, or None.

    Summed in float64 where the device has it: rounding errors of a float32 sum would be the largest of all. Every
    matrix is checked separately, so that no other row and no earlier token depends on its decays; NaN counts as within
    the limit.
    """
    shape = (exp_g.shape[0], block.chunk, gk.shape[3])
    steps = block.load(gk, gk.new_empty(shape, dtype=wide_dtype(gk.device, exp_g.dtype)))
    exp_g[:, :1].fill_(1.0)
    exp_g[:, 1:].copy_(torch.cumsum(steps, 1, out=steps).exp_())
    flat = exp_g.flatten(1)
    strong = exceeds_limit(flat.amin(1)).logical_or_(exceeds_limit(flat.amax(1)))
    if not bool(strong.any()):
        return None
    exp_g.clamp_(min=1e-30, max=1e30)
    return strong.nonzero(as_tuple=True)[0]


def exceeds_limit(exp_g: torch.Tensor) -> torch.Tensor:
    """Where ``exp(c)`` is beyond the limit."""
    return (exp_g < math.exp(-LIMIT)).logical_or_(exp_g > math.exp(LIMIT))


def scale_tokens(
    block: Block, left: torch.Tensor, right: torch.Tensor, gk: torch.Tensor, before: bool, exp_g: torch.Tensor,
    beyond: Optional[torch.Tensor], out: torch.Tensor, A: torch.Tensor,
) -> Channels:
    """Scale the tokens of a block by their decays, in place, and multiply rows and columns.

    Args:
        block: which chunks.
        left: ``[M, R C, K]``, reading tokens; overwritten.
        right: ``[M, S C, K]``, writing tokens; overwritten.
        gk: ``[B, T, HV, K]`` log decays.
        before: whether the second kind of rows reads before its own decay.
        exp_g, beyond: of `exp_decays`.
        out: ``[M, S C, K]``, written.
        A: ``[M, R C, S C]``, written.
    """
    chunk, strong = block.chunk, None
    if beyond is not None:
        late = exceeds_limit(exp_g[:, 1:].index_select(0, beyond)).any(2).cumsum(1) > 0
        raw = (x.index_select(0, beyond) for x in (left, right))
        strong = StrongDecays(block, gk, beyond, late, before, *raw)
    exclusive, inclusive, last = exp_g[:, :-1], exp_g[:, 1:], exp_g[:, chunk:]
    for row in range(left.shape[1] // chunk):
        left[:, row * chunk : (row + 1) * chunk].mul_(exclusive if row and before else inclusive)
    _kinds(right, chunk).div_(inclusive.unsqueeze(1))
    torch.mul(right, last, out=out)
    torch.bmm(left, right.transpose(1, 2), out=A)
    g_last = last.transpose(1, 2).contiguous()
    if strong is not None:
        strong.replace(left, out, g_last, A)
    return Channels(exp_g, left, right, out, causal_mask_(A, chunk), g_last, strong)


def causal_mask_(A: torch.Tensor, chunk: int) -> torch.Tensor:
    """Set later tokens in ``[M, R C, S C]`` to zero, in place: above the diagonal for queries, also on it for keys."""
    for row in range(A.shape[1] // chunk):
        for column in range(A.shape[2] // chunk):
            A[:, row * chunk : (row + 1) * chunk, column * chunk : (column + 1) * chunk].tril_(-1 if row else 0)
    return A


def token_grads(
    c: Channels, before: bool, chunk: int, dA: torch.Tensor, dleft: torch.Tensor, dout: torch.Tensor,
    dg_last: torch.Tensor, buffers: Buffers,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the tokens as the family stacked them, and of gk ``[M, C, K]``.

    The gradient of a step's log decay is a sum over all paths that cross the step: reads of the incoming state by this
    token and later ones, writes of earlier tokens to the state after the chunk, the incoming state's part of that, and
    reads of earlier tokens by this one and later ones. These are the difference ``left dleft - right dright``, summed
    from this token on. Terms that no decay scales (a token's reading of itself, the last token's write) are left out,
    so that the difference is exact to rounding for strong decays too.

    Args:
        c: the result of `scale_tokens`.
        before: as for `scale_tokens`.
        chunk: C.
        dA: ``[M, R C, S C]`` gradient of A, with later tokens not yet zero; overwritten.
        dleft: ``[M, R C, K]`` gradient of left through the state; overwritten.
        dout: ``[M, S C, K]`` gradient of out; overwritten.
        dg_last: ``[M, K, 1]`` gradient of g_last.
        buffers: for intermediate results.
    """
    kinds = dA.shape[2] // chunk
    h_dh = (dg_last * c.g_last).transpose(1, 2)
    causal_mask_(dA, chunk)
    exact = None if c.strong is None else c.strong.grads(dA, dleft, dout, h_dh)
    self_reads = []
    for kind in range(kinds):
        diagonal = dA[:, :chunk, kind * chunk : (kind + 1) * chunk].diagonal(0, 1, 2)
        self_reads.append(diagonal.clone().unsqueeze(-1))
        diagonal.zero_()
    dleft.baddbmm_(dA, c.right)
    dright = torch.bmm(dA.transpose(1, 2), c.left, out=buffers["dright"])
    dc = buffers["dc"]
    of_tokens, of_writes = dc[:, :chunk], dc[:, chunk:]
    queries, dqueries = c.left[:, :chunk], dleft[:, :chunk]
    torch.mul(queries, dqueries, out=of_tokens)
    for row in range(1, dleft.shape[1] // chunk):
        at = slice(row * chunk + before, (row + 1) * chunk)
        of_tokens[:, : chunk - before].addcmul_(c.left[:, at], dleft[:, at])
    rights, drights, douts, outs = (_kinds(x, chunk) for x in (c.right, dright, dout, c.out))
    for kind in range(kinds):
        of_tokens.addcmul_(rights[:, kind], drights[:, kind], value=-1)
        if kind:
            of_writes.addcmul_(outs[:, kind], douts[:, kind])
        else:
            torch.mul(outs[:, kind], douts[:, kind], out=of_writes)
    ones = torch.ones(chunk, chunk, dtype=dc.dtype, device=dc.device)
    sums = torch.cat((ones.triu(), ones.tril(-1)), dim=1).expand(dc.shape[0], -1, -1)
    dgk = torch.bmm(sums, dc, out=buffers["dgk"]).add_(h_dh)
    dright.addcmul_(dout, c.exp_g[:, chunk:])
    for kind in range(kinds):
        dqueries.addcmul_(rights[:, kind], self_reads[kind])
        drights[:, kind].addcmul_(queries, self_reads[kind])
    for row in range(dleft.shape[1] // chunk):
        dleft[:, row * chunk : (row + 1) * chunk].mul_(c.exp_g[:, :-1] if row and before else c.exp_g[:, 1:])
    drights.div_(c.exp_g[:, 1:].unsqueeze(1))
    if c.strong is not None and exact is not None:
        for dx, computed_again in zip((dleft, dright, dgk), exact):
            dx.index_copy_(0, c.strong.matrices, computed_again)
    return dleft, dright, dgk


def _kinds(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """``[M, S C, K]`` as ``[M, S, C, K]``."""
    return x.view(x.shape[0], -1, chunk, x.shape[2])

"""Causal depthwise convolution as shifted multiply-adds, forward and backward, on `[B, T, D]` as it lies in memory.

Legend: B sequences, T tokens, D channels, W taps. `taps [W, D]` is the kernel with its axes swapped, so that each tap
is one row that multiplies whole tokens: `z[t] = bias + sum_s taps[W-1-s] * x[t-s]`, s = 0 .. W-1.
`history [B, W-1, D]` has the inputs before the first token, newest last; without it they are zero.

Taps are added newest first everywhere, so a sequence that is cut in two and continued with its history, or packed with
others, has the same sums in the same order as the whole sequence.
"""

import math
from typing import NamedTuple, Optional

import torch

from myfla.modules.blocks import blocks


class Heads(NamedTuple):
    """The first W-1 tokens of packed sequences: the only ones whose window reaches over a boundary."""

    grid: torch.Tensor  # [N * (W-1)] their numbers, sequence by sequence, at most that of the last token
    rows: torch.Tensor  # [M] the numbers of those that exist: shorter sequences have fewer
    keep: Optional[torch.Tensor]  # [M] their places in the grid; None if all exist
    gone: Optional[torch.Tensor]  # the other places of the grid


def heads_of(cu_seqlens: torch.Tensor, tokens: int, width: int) -> Heads:
    """`Heads` of sequences packed at ``cu_seqlens [N+1]``; needs ``tokens > 0``."""
    offsets = cu_seqlens.long()
    grid = offsets[:-1, None] + torch.arange(width - 1, device=offsets.device)
    real = (grid < offsets[1:, None]).flatten()
    grid = grid.flatten()
    if bool(real.all()):
        return Heads(grid, grid, None, None)
    keep, gone = real.nonzero().squeeze(1), (~real).nonzero().squeeze(1)
    return Heads(grid.clamp(max=tokens - 1), grid[keep], keep, gone)


def convolve(
    x: torch.Tensor, taps: torch.Tensor, bias: Optional[torch.Tensor], history: Optional[torch.Tensor],
    heads: Optional[Heads] = None,
) -> torch.Tensor:
    """``z [B, T, D]``. With ``heads``, x is ``[1, T, D]`` packed and the history ``[N, W-1, D]``."""
    width, T = taps.shape[0], x.shape[1]
    z = x * taps[-1] if bias is None else torch.addcmul(bias, x, taps[-1])
    for s in range(1, min(width, T)):
        z[:, s:].addcmul_(x[:, : T - s], taps[-1 - s])
    if heads is not None:
        # This crossed the boundaries. The heads are computed again, as a batch of short sequences with their histories.
        own = convolve(_pick(x, heads, width), taps, bias, history).flatten(0, 1)
        z[0].index_copy_(0, heads.rows, _existing(own, heads))
    elif history is not None:
        for s in range(1, width):
            m = min(s, T)
            z[:, :m].addcmul_(_past(history, s, m), taps[-1 - s])
    return z


class Needs(NamedTuple):
    """Which gradients are requested."""

    x: bool
    taps: bool
    bias: bool
    history: bool


class Gradients(NamedTuple):
    """Gradients of x ``[B, T, D]``, taps ``[W, D]``, bias ``[D]`` and history ``[B, W-1, D]``; None where not
    requested."""

    x: Optional[torch.Tensor]
    taps: Optional[torch.Tensor]
    bias: Optional[torch.Tensor]
    history: Optional[torch.Tensor]


def backward(
    dy: torch.Tensor, z: Optional[torch.Tensor], x: torch.Tensor, taps: torch.Tensor, history: Optional[torch.Tensor],
    heads: Optional[Heads], needs: Needs,
) -> Gradients:
    """Gradients of ``silu(z)``, or of z itself if it is not given; ``dy`` is not changed."""
    if heads is None:
        return _backward_dense(dy, z, x, taps, history, needs)
    dz = dy.clone() if z is None else torch.ops.aten.silu_backward(dy, z)
    bias = dz.sum((0, 1)) if needs.bias else None
    needs = needs._replace(bias=False)
    own_dz = _pick(dz, heads, taps.shape[0])
    if heads.gone is not None:
        own_dz.view(-1, dz.shape[2]).index_fill_(0, heads.gone, 0)
    dz.index_fill_(1, heads.rows, 0)
    whole = _backward_dense(dz, None, x, taps, None, needs._replace(history=False))
    own = _backward_dense(own_dz, None, _pick(x, heads, taps.shape[0]), taps, history, needs)
    if whole.x is not None and own.x is not None:
        whole.x[0].index_add_(0, heads.rows, _existing(own.x.flatten(0, 1), heads))
    if whole.taps is not None and own.taps is not None:
        whole.taps.add_(own.taps)
    return Gradients(whole.x, whole.taps, bias, own.history)


def _backward_dense(
    dy: torch.Tensor, z: Optional[torch.Tensor], x: torch.Tensor, taps: torch.Tensor, history: Optional[torch.Tensor],
    needs: Needs,
) -> Gradients:
    """Computed block by block from the last token on: a block needs the gradients of the W-1 tokens after it."""
    width, (B, T, D) = taps.shape[0], x.shape
    found = Gradients(
        dy.new_empty(B, T, D) if needs.x else None, dy.new_zeros(width, D) if needs.taps else None,
        dy.new_zeros(D) if needs.bias else None, dy.new_zeros(B, width - 1, D) if needs.history else None,
    )  # fmt: skip
    window = product = dy.new_empty(0)
    for rows, start, end in blocks(B, T, D, x.device):
        n = end - start
        if end == T:
            window = dy.new_zeros(rows.stop - rows.start, n + width - 1, D)  # dz of this block and of later tokens
            product = torch.empty_like(window) if needs.taps else product
        else:
            window[:, n : n + width - 1] = window[:, : width - 1].clone()
        dz = window[:, :n]
        if z is None:
            dz.copy_(dy[rows, start:end])
        else:
            torch.ops.aten.silu_backward.grad_input(dy[rows, start:end], z[rows, start:end], grad_input=dz)
        if found.x is not None:
            add_x(found.x[rows, start:end], window, taps, T - start)
        if found.taps is not None:
            add_taps(found.taps, window, x[rows], start, end, product)
        if found.bias is not None:
            found.bias.add_(dz.sum((0, 1)))
        if start < width - 1 and history is not None:
            _add_past(found, dz, history, rows, taps, start)
    return found


def add_x(dx: torch.Tensor, window: torch.Tensor, taps: torch.Tensor, left: int) -> None:
    """Gradient of a block's inputs ``[B, n, *D]``.

    Args:
        dx: the result, written.
        window: ``[B, n + W - 1, *D]``, gradients of z at the block and at the tokens after it.
        taps: ``[W, *D]``.
        left: tokens from the first of the block to the end of the sequence.
    """
    n = dx.shape[1]
    torch.mul(window[:, :n], taps[-1], out=dx)
    for s in range(1, min(taps.shape[0], left)):
        m = min(n, left - s)
        dx[:, :m].addcmul_(window[:, s : s + m], taps[-1 - s])


def add_taps(
    dtaps: torch.Tensor, window: torch.Tensor, x: torch.Tensor, start: int, end: int, buffer: torch.Tensor
) -> None:
    """Add a block's part to the gradient of the taps ``[W, *D]``; ``x [B, T, *D]`` are all inputs of its rows."""
    for s in range(dtaps.shape[0]):
        first = max(start, s)
        if first < end:
            # A contiguous piece of the buffer for every s: a sum over a strided one is several times slower.
            shape = (x.shape[0], end - first, *x.shape[2:])
            product = buffer.view(-1)[: math.prod(shape)].view(shape)
            torch.mul(window[:, first - start : end - start], x[:, first - s : end - s], out=product)
            dtaps[-1 - s] += product.sum((0, 1))


def _add_past(
    found: Gradients, dz: torch.Tensor, history: torch.Tensor, rows: slice, taps: torch.Tensor, start: int
) -> None:
    """The gradient of the history, from the first tokens of the sequences; ``dz`` is that of tokens from ``start``
    on."""
    for s in range(start + 1, taps.shape[0]):
        m = min(s - start, dz.shape[1])
        if found.taps is not None:
            found.taps[-1 - s] += (dz[:, :m] * _past(history[rows], s - start, m)).sum((0, 1))
        if found.history is not None:
            _past(found.history[rows], s - start, m).addcmul_(dz[:, :m], taps[-1 - s])


def _pick(rows: torch.Tensor, heads: Heads, width: int) -> torch.Tensor:
    """The heads of packed rows ``[1, T, D]`` as ``[N, W-1, D]``. index_select copies whole rows; [] is slower."""
    return rows[0].index_select(0, heads.grid).view(-1, width - 1, rows.shape[2])


def _existing(rows: torch.Tensor, heads: Heads) -> torch.Tensor:
    return rows if heads.keep is None else rows.index_select(0, heads.keep)


def _past(history: torch.Tensor, s: int, m: int) -> torch.Tensor:
    """The part of the history, or of its gradient, that tap ``s`` reads for the first ``m`` tokens."""
    start = history.shape[1] - s
    return history[:, start : start + m]

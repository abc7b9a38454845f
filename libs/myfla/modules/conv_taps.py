"""Causal depthwise convolution as shifted multiply-adds, forward and backward, on `[B, T, D]` as it lies in memory.

Legend: B sequences, T tokens, D channels, W taps. `taps [W, D]` is the kernel with its axes swapped, so that each tap
is one row that multiplies whole tokens: `z[t] = bias + sum_s taps[W-1-s] * x[t-s]`, s = 0 .. W-1.
`history [B, W-1, D]` is what stood before the first token, newest last; without it the past is zero.

Taps are added newest first everywhere, so a sequence cut in two and continued through its history, or packed among
others, repeats the same sums in the same order as the whole.
"""

from typing import NamedTuple, Optional, Tuple

import torch


class Heads(NamedTuple):
    """The first W-1 tokens of packed sequences: the only ones whose window reaches over a boundary."""

    grid: torch.Tensor  # [N * (W-1)] their numbers, sequence by sequence, clamped to the last token there is
    rows: torch.Tensor  # [M] the numbers of those that exist: shorter sequences have fewer
    keep: Optional[torch.Tensor]  # [M] where those stand in the grid; None if all exist
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
        # That ran over the boundaries. The heads are done again, as a batch of short sequences with their own past.
        own = convolve(_pick(x, heads, width), taps, bias, history).flatten(0, 1)
        z[0].index_copy_(0, heads.rows, _existing(own, heads))
    elif history is not None:
        for s in range(1, width):
            m = min(s, T)
            z[:, :m].addcmul_(_past(history, s, m), taps[-1 - s])
    return z


def backward(
    dz: torch.Tensor, x: torch.Tensor, taps: torch.Tensor, history: Optional[torch.Tensor],
    heads: Optional[Heads], needs: Tuple[bool, bool, bool],
) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of x, taps and history; ``needs`` says which are asked for. With ``heads``, dz is overwritten."""
    width = taps.shape[0]
    if heads is not None:
        return _backward_packed(dz, x, taps, history, heads, needs)
    buffer = torch.empty_like(dz)
    dtaps = _backward_taps(dz, x, history, width, buffer) if needs[1] else None
    dhistory = _backward_history(dz, taps) if needs[2] else None
    return _backward_x(dz, taps, buffer) if needs[0] else None, dtaps, dhistory


def _backward_packed(dz, x, taps, history, heads, needs):
    own_dz = _pick(dz, heads, taps.shape[0])
    if heads.gone is not None:
        own_dz.view(-1, dz.shape[2]).index_fill_(0, heads.gone, 0)
    dz.index_fill_(1, heads.rows, 0)
    dx, dtaps, _ = backward(dz, x, taps, None, None, (needs[0], needs[1], False))
    own_dx, own_dtaps, dhistory = backward(own_dz, _pick(x, heads, taps.shape[0]), taps, history, None, needs)
    if dx is not None and own_dx is not None:
        dx[0].index_add_(0, heads.rows, _existing(own_dx.flatten(0, 1), heads))
    if dtaps is not None and own_dtaps is not None:
        dtaps.add_(own_dtaps)
    return dx, dtaps, dhistory


def _pick(rows: torch.Tensor, heads: Heads, width: int) -> torch.Tensor:
    """The heads of packed rows ``[1, T, D]`` as ``[N, W-1, D]``. index_select copies whole rows; [] is slower."""
    return rows[0].index_select(0, heads.grid).view(-1, width - 1, rows.shape[2])


def _existing(rows: torch.Tensor, heads: Heads) -> torch.Tensor:
    return rows if heads.keep is None else rows.index_select(0, heads.keep)


def _past(history: torch.Tensor, s: int, m: int) -> torch.Tensor:
    """What tap ``s`` reads of the history for the first ``m`` tokens, or writes to its gradient."""
    start = history.shape[1] - s
    return history[:, start : start + m]


def _backward_x(dz: torch.Tensor, taps: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    T = dz.shape[1]
    dx = torch.mul(dz, taps[-1], out=out)
    for s in range(1, min(taps.shape[0], T)):
        dx[:, : T - s].addcmul_(dz[:, s:], taps[-1 - s])
    return dx


def _backward_taps(
    dz: torch.Tensor, x: torch.Tensor, history: Optional[torch.Tensor], width: int, buffer: torch.Tensor
) -> torch.Tensor:
    B, T, D = x.shape
    dtaps = dz.new_zeros(width, D)
    for s in range(min(width, T)):
        # A contiguous piece of the buffer, whatever s: a sum over a strided one is several times slower.
        product = buffer.view(-1)[: B * (T - s) * D].view(B, T - s, D)
        torch.sum(torch.mul(dz[:, s:], x[:, : T - s], out=product), (0, 1), out=dtaps[-1 - s])
    if history is not None:
        for s in range(1, width):
            m = min(s, T)
            dtaps[-1 - s] += (dz[:, :m] * _past(history, s, m)).sum((0, 1))
    return dtaps


def _backward_history(dz: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    width, T = taps.shape[0], dz.shape[1]
    dhistory = dz.new_zeros(dz.shape[0], width - 1, dz.shape[2])
    for s in range(1, width):
        m = min(s, T)
        _past(dhistory, s, m).addcmul_(dz[:, :m], taps[-1 - s])
    return dhistory

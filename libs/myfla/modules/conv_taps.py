"""Causal depthwise convolution as shifted multiply-adds, forward and backward, on `[B, T, D]` as it lies in memory.

Legend: B sequences, T tokens, D channels, W taps. `taps [W, D]` is the kernel with its axes swapped, so that each tap
is one row that multiplies whole tokens: `z[t] = bias + sum_s taps[W-1-s] * x[t-s]`, s = 0 .. W-1.
`history [B, W-1, D]` is what stood before the first token, newest last; without it the past is zero.

Taps are added newest first everywhere, so a sequence cut in two and continued through its history, or packed among
others, repeats the same sums in the same order as the whole.
"""

from typing import NamedTuple, Optional, Tuple

import torch


class Spread(NamedTuple):
    """Packed sequences drawn apart: before each one stand W-1 more rows, so that no window crosses a boundary.

    The rows in between hold the history, or zeros. E = T + N (W-1) rows in all.
    """

    source: torch.Tensor  # [E] the token that comes to each row; any at the gaps
    place: torch.Tensor  # [T] the row that each token comes to
    gaps: torch.Tensor  # [N * (W-1)] the rows in between, sequence by sequence


def spread_of(cu_seqlens: torch.Tensor, tokens: int, width: int) -> Spread:
    """`Spread` of sequences packed at ``cu_seqlens [N+1]``; needs ``tokens > 0``."""
    offsets, gap = cu_seqlens.long(), width - 1
    numbers = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    sequence = torch.repeat_interleave(numbers, offsets[1:] - offsets[:-1])
    token = torch.arange(tokens, device=offsets.device)
    place = token + gap * (sequence + 1)
    gaps = (offsets[:-1] + gap * numbers).unsqueeze(1) + torch.arange(gap, device=offsets.device)
    source = token.new_zeros(tokens + gaps.numel())
    source[place] = token
    return Spread(source, place, gaps.flatten())


def draw_apart(rows: torch.Tensor, spread: Spread, history: Optional[torch.Tensor]) -> torch.Tensor:
    """Packed ``[1, T, D]`` to ``[1, E, D]``, with the history ``[N, W-1, D]`` or zeros in the gaps."""
    # index_select and index_fill_ copy whole rows; index_copy_ and index_put_ are several times slower.
    wide = rows.index_select(1, spread.source)
    if history is None:
        return wide.index_fill_(1, spread.gaps, 0)
    return wide.index_copy_(1, spread.gaps, history.reshape(1, -1, rows.shape[2]))


def convolve(
    x: torch.Tensor, taps: torch.Tensor, bias: Optional[torch.Tensor], history: Optional[torch.Tensor],
    spread: Optional[Spread] = None,
) -> torch.Tensor:
    """``z [B, T, D]``. With ``spread``, x is ``[1, T, D]`` packed and the history ``[N, W-1, D]``."""
    if spread is not None:
        return convolve(draw_apart(x, spread, history), taps, bias, None).index_select(1, spread.place)
    width, T = taps.shape[0], x.shape[1]
    z = x * taps[-1] if bias is None else torch.addcmul(bias, x, taps[-1])
    for s in range(1, min(width, T)):
        z[:, s:].addcmul_(x[:, : T - s], taps[-1 - s])
    if history is not None:
        for s in range(1, width):
            m = min(s, T)
            z[:, :m].addcmul_(_past(history, s, m), taps[-1 - s])
    return z


def backward(
    dz: torch.Tensor, x: torch.Tensor, taps: torch.Tensor, history: Optional[torch.Tensor],
    spread: Optional[Spread], needs: Tuple[bool, bool, bool],
) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Gradients of x, taps and history; ``needs`` says which are asked for."""
    if spread is not None:
        x = draw_apart(x, spread, history) if needs[1] else dz.new_empty(1, spread.source.shape[0], dz.shape[2])
        wide_dz = draw_apart(dz, spread, None)
        dx, dtaps, _ = backward(wide_dz, x, taps, None, None, (needs[0] or needs[2], needs[1], False))
        dhistory = dx[0][spread.gaps].view(-1, taps.shape[0] - 1, dz.shape[2]) if needs[2] else None
        return dx.index_select(1, spread.place) if needs[0] else None, dtaps, dhistory
    buffer = torch.empty_like(dz)
    dtaps = _backward_taps(dz, x, history, taps.shape[0], buffer) if needs[1] else None
    dhistory = _backward_history(dz, taps) if needs[2] else None
    return _backward_x(dz, taps, buffer) if needs[0] else None, dtaps, dhistory


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
        dtaps[-1 - s] = torch.mul(dz[:, s:], x[:, : T - s], out=product).sum((0, 1))
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

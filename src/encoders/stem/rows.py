"""Packed sequences as rows with zeros behind them, for convolutions, and back."""

from typing import Tuple

import torch
import torch.nn.functional as F

from encoders.batch import Layout, from_mask
from myfla.utils.errors import value_error
from myfla.utils.rows import to_rows
from myfla.utils.tracing import exporting

__all__ = ["as_rows", "inside", "pack_rows", "repack_rows", "shorten", "shortened", "to_shorten", "trim"]


def shorten(lengths: torch.Tensor, stride: int) -> torch.Tensor:
    """``ceil(lengths / stride)``."""
    return torch.div(lengths + (stride - 1), stride, rounding_mode="floor")


def shortened(time: int, stride: int) -> int:
    """``ceil(time / stride)``, of a size that may be a symbol of an exporter."""
    return (time + stride - 1) // stride


def inside(lengths: torch.Tensor, time: int) -> torch.Tensor:
    """``[N, time]`` bool: which steps belong to sequences that begin at their row's start.

    Example:
        >>> inside(torch.tensor([1, 2]), 2).tolist()
        [[True, False], [True, True]]
    """
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def as_rows(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """What a layout packs, as ``[N, longest, D]``: each sequence at its row's start, zeros behind it.

    Args:
        x: ``[B, T, D]``, returned as it is, or packed ``[1, total, D]``.
        layout: of ``x``.

    Raises:
        ValueError: packed data on the device meta, whose lengths have no values.
    """
    if layout.cu_seqlens is None:
        return x
    if x.is_meta:
        hint = "the length of what a stem returns depends on them; give a batch"
        raise value_error("encoder", "cu_seqlens", "must have values", "tensors on the device meta", hint)
    if layout.real is not None:  # recorded: pads follow as one more sequence
        return to_rows(x, layout.cu_seqlens)[: layout.batch, : layout.time]
    longest = int(layout.lengths.max()) if layout.lengths.numel() else 0
    places = inside(layout.lengths, longest).flatten().nonzero().flatten()
    rows = x.new_zeros(len(layout.lengths) * longest, x.shape[2])
    return rows.index_copy(0, places, x[0]).view(len(layout.lengths), longest, x.shape[2])


def to_shorten(x: torch.Tensor, layout: Layout, stride: int) -> Tuple[torch.Tensor, bool]:
    """`as_rows` for layers that make sequences shorter, and whether anything but sequences may stand in the rows.

    In an exported graph each row gets ``stride`` zeros more, so that it still has two steps or more at the end: the
    exporter takes a size that could be 1 for one that never is, and would refuse the lengths at which it is.
    """
    rows, ragged = as_rows(x, layout), layout.cu_seqlens is not None
    if stride > 1 and exporting():
        return F.pad(rows, (0, 0, 0, stride)), True
    return rows, ragged


def trim(rows: torch.Tensor, layout: Layout, stride: int) -> torch.Tensor:
    """Shortened rows ``[N, T', D]`` without the steps that `to_shorten` added."""
    if stride > 1 and exporting():
        return rows[:, torch.arange(shortened(layout.time, stride), device=rows.device)]
    return rows


def pack_rows(rows: torch.Tensor, lengths: torch.Tensor, layout: Layout) -> Tuple[torch.Tensor, Layout]:
    """Rows of other lengths than the layout's, packed as it packs, and their layout.

    Args:
        rows: ``[N, T, D]``; what stands behind a sequence is never read.
        lengths: ``[N]``.
        layout: of the data before.
    """
    if layout.cu_seqlens is None:
        return rows, Layout(layout.batch, rows.shape[1], lengths)
    within = inside(lengths, rows.shape[1])
    if layout.real is not None:
        short = from_mask(within)
        return short.pack(rows), short
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    positions = within.flatten().nonzero().flatten()
    x = rows.flatten(0, 1)[positions].unsqueeze(0)
    if layout.tokens is None:  # the caller packed, and gets it packed
        return x, Layout(1, x.shape[1], lengths, ends)
    return x, Layout(layout.batch, rows.shape[1], lengths, ends, positions)


def repack_rows(rows: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Rows of the layout's own lengths, packed as it packs: every step where it was."""
    if layout.cu_seqlens is None:
        return rows
    if layout.real is None:
        return rows[inside(layout.lengths, rows.shape[1])].unsqueeze(0)
    segment = layout.segments()
    real = segment < layout.batch
    row = segment.clamp(max=layout.batch - 1)
    step = torch.arange(len(segment), device=rows.device) - layout.cu_seqlens.long()[row]
    packed = rows[row, step.clamp(0, rows.shape[1] - 1)]
    return torch.where(real[:, None], packed, packed.new_zeros(())).unsqueeze(0)

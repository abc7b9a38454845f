"""Packed sequences in shapes that do not depend on the offsets, for compilers and exporters."""

from typing import Tuple

import torch

__all__ = ["from_rows", "pack_all", "segments_of", "to_rows"]


def to_rows(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Packed ``[1, total, ...]`` as a batch ``[N, total, ...]``, every sequence at its row's start, then zeros.

    It has N times the size of the packed data, because a compiled graph must know the shape.

    Example:
        >>> to_rows(torch.tensor([[1, 2, 3]]), torch.tensor([0, 1, 3])).tolist()
        [[1, 0, 0], [2, 3, 0]]
    """
    bounds, total = cu_seqlens.to(x.device, torch.int64), x.shape[1]
    position = torch.arange(total, device=x.device)
    index = (bounds[:-1, None] + position).clamp(max=total - 1)
    valid = position < (bounds[1:] - bounds[:-1])[:, None]
    rows = x[0].index_select(0, index.reshape(-1)).view(index.shape + x.shape[2:])
    return torch.where(valid.view(valid.shape + (1,) * (x.dim() - 2)), rows, rows.new_zeros(()))


def from_rows(rows: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_rows`.

    Example:
        >>> from_rows(torch.tensor([[1, 0, 0], [2, 3, 0]]), torch.tensor([0, 1, 3])).tolist()
        [[1, 2, 3]]
    """
    bounds = cu_seqlens.to(rows.device, torch.int64)
    token = torch.arange(rows.shape[1], device=rows.device)
    row = segments_of(bounds, rows.shape[1]).clamp(max=bounds.shape[0] - 2)
    return rows[row, token - bounds[row]].unsqueeze(0)


def pack_all(mask: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Rows with padding as packed sequences, and all padding as one more sequence after them.

    Args:
        mask: ``[B, T]``, True at tokens; padding may be anywhere.

    Returns:
        ``[B * T]`` int64, for each packed position the position in the flattened batch; and the offsets ``[B + 2]``
        int32.

    Example:
        >>> [x.tolist() for x in pack_all(torch.tensor([[False, True, True], [True, False, False]]))]
        [[1, 2, 3, 0, 4, 5], [0, 2, 3, 6]]
    """
    order = torch.sort((~mask).flatten().to(torch.uint8), stable=True)[1]
    ends = mask.sum(1).cumsum(0)
    total = torch.full((1,), mask.shape[0] * mask.shape[1], dtype=ends.dtype, device=ends.device)
    return order, torch.cat([torch.zeros_like(total), ends, total]).int()


def segments_of(cu_seqlens: torch.Tensor, total: int) -> torch.Tensor:
    """``[total]`` int64: the sequence that each packed token belongs to.

    Example:
        >>> segments_of(torch.tensor([0, 2, 2, 3]), 3).tolist()
        [0, 0, 2]
    """
    bounds = cu_seqlens.to(torch.int64)
    return torch.searchsorted(bounds[1:], torch.arange(total, device=bounds.device), right=True)

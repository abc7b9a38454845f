"""Packed sequences as the rows of a batch whose shape does not depend on the offsets."""

import torch

__all__ = ["from_rows", "to_rows"]


def to_rows(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Packed ``[1, total, ...]`` as a batch ``[N, total, ...]``, every sequence at its row's start, then zeros.

    As large as N times the packed data: the price of a shape that a compiled graph can know.

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
    row = torch.searchsorted(bounds[1:], token, right=True).clamp(max=bounds.shape[0] - 2)
    return rows[row, token - bounds[row]].unsqueeze(0)

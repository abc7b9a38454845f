"""Hides a random part of sequences, as augmentation."""

import torch
from torch import Tensor

from encoders.training.data.batches import Batch

__all__ = ["mask"]


def mask(batch: Batch, most: float) -> Tensor:
    """The features with one stretch of each sequence set to zero, after DeVries and Taylor (arXiv 1708.04552).

    Its length, up to ``most`` of the sequence, and its position are drawn uniformly from torch's global generator.

    Args:
        batch: of features.
        most: share of a sequence, from 0 to 1.

    Returns:
        in the shape of ``batch.x``.

    Example:
        >>> batch = Batch(torch.ones(1, 100, 2), torch.tensor([100]), torch.tensor([0]))
        >>> 70 <= mask(batch, 0.3).sum() / 2 <= 100
        tensor(True)
    """
    x, lengths = batch.x, batch.lengths
    draws = torch.rand(2, len(lengths), dtype=torch.float64).to(lengths.device)
    hidden = (draws[0] * ((lengths.double() * most).floor() + 1)).long()
    first = (draws[1] * (lengths - hidden + 1)).long()
    row, step = batch.rows(), torch.arange(x.shape[1], device=x.device)
    if batch.cu_seqlens is not None:
        step = step - batch.cu_seqlens[row]
    first = first[row]
    return x.masked_fill(((step >= first) & (step < first + hidden[row]))[..., None], 0.0)

"""Random parts of sequences, as augmentation."""

import torch

from encoders.training.data.batches import Batch

__all__ = ["crop"]

LEAST = 16
"""Smallest number of steps that remain."""


def crop(batch: Batch, share: float) -> Batch:
    """A random contiguous part of each sequence, at least ``1 - share`` of it and at least `LEAST` steps.

    Length and position are drawn uniformly from torch's global generator.

    Args:
        batch: with one target for each sequence, which stays.
        share: from 0 (nothing is cut off) to below 1.

    Example:
        >>> batch = Batch(torch.randn(1, 100, 2), torch.tensor([100]), torch.tensor([0]))
        >>> 50 <= crop(batch, 0.5).lengths.item() <= 100
        True
    """
    whole = batch.lengths
    least = torch.minimum((whole * (1 - share)).ceil().long().clamp(min=LEAST), whole)
    draws = torch.rand(2, len(whole), dtype=torch.float64).to(whole.device)
    kept = least + (draws[0] * (whole - least + 1)).long()
    start = (draws[1] * (whole - kept + 1)).long()
    if batch.cu_seqlens is None:
        steps = torch.arange(int(kept.max()), device=whole.device)
        index = (start[:, None] + steps).clamp(max=batch.x.shape[1] - 1)
        rows = torch.arange(len(whole), device=whole.device)[:, None]
        return batch._replace(x=batch.x[rows, index], lengths=kept)
    offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    first = batch.cu_seqlens[:-1] + start - offsets[:-1]
    index = torch.repeat_interleave(first, kept) + torch.arange(int(offsets[-1]), device=whole.device)
    return batch._replace(x=batch.x[:, index], lengths=kept, cu_seqlens=offsets)

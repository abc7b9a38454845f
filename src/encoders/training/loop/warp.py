"""Stretches or shrinks sequences in time, as augmentation."""

import torch

from encoders.training.data.batches import Batch

__all__ = ["warp"]

LEAST = 4
"""Smallest number of steps after warping; shorter sequences do not change."""


def warp(batch: Batch, most: float) -> Batch:
    """Resample each sequence of T steps at about ``T * exp(u)`` evenly spaced positions by linear interpolation.

    ``u`` is drawn uniformly from ``-most`` to ``most``, from torch's global generator.

    Args:
        batch: of features, with one target for each sequence, which stays.
        most: at least 0.

    Example:
        >>> batch = Batch(torch.randn(1, 100, 2), torch.tensor([100]), torch.tensor([0]))
        >>> 74 <= warp(batch, 0.3).lengths.item() <= 135
        True
    """
    old = batch.lengths
    draws = torch.rand(len(old), dtype=torch.float64).to(old.device) * 2 - 1
    new = (old * (most * draws).exp()).round().long().clamp(min=LEAST)
    new = torch.where(old < LEAST, old, new)
    pace = (old - 1).clamp(min=0) / (new - 1).clamp(min=1)  # old steps a new one
    if batch.cu_seqlens is None:
        step = torch.arange(int(new.max()), device=old.device)
        place = torch.minimum(step * pace[:, None], (old - 1).clamp(min=0)[:, None].double())
        first = place.floor().long()
        second = torch.minimum(first + 1, (old - 1).clamp(min=0)[:, None])
        rows = torch.arange(len(old), device=old.device)[:, None]
        share = (place - first).to(batch.x.dtype)[..., None]
        return batch._replace(x=torch.lerp(batch.x[rows, first], batch.x[rows, second], share), lengths=new)
    offsets = torch.cat([new.new_zeros(1), new.cumsum(0)])
    row = torch.repeat_interleave(torch.arange(len(new), device=old.device), new)
    place = (torch.arange(int(offsets[-1]), device=old.device) - offsets[row]) * pace[row]
    place = torch.minimum(place, (old - 1)[row].double())
    start, first = batch.cu_seqlens[:-1].long()[row], place.floor().long()
    second = torch.minimum(first + 1, (old - 1)[row])
    share = (place - first).to(batch.x.dtype)[:, None]
    x = torch.lerp(batch.x[0, start + first], batch.x[0, start + second], share)
    return batch._replace(x=x[None], lengths=new, cu_seqlens=offsets)

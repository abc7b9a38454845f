"""Batches: sequences with padding, or packed one after the other."""

from typing import Any, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.training.data.sequences import IGNORE, Sample

__all__ = ["Batch", "collate", "pack"]


class Batch(NamedTuple):
    """Sequences for one step of training.

    Attributes:
        x: ``[B, T, D]`` float features or ``[B, T]`` int64 tokens, zeros after each sequence; packed:
            ``[1, total, D]`` or ``[1, total]``.
        lengths: ``[N]`` int64, steps of each sequence.
        targets: ``[N]`` int64 or ``[N, K]`` float; per step ``[B, T]`` or ``[B, T, K]`` (packed ``[1, total]``, ...),
            with `IGNORE` or NaN for a missing target.
        cu_seqlens: ``[N + 1]`` int64, where each packed sequence starts, and the end; None for a padded batch.
    """

    x: Tensor
    lengths: Tensor
    targets: Tensor
    cu_seqlens: Optional[Tensor] = None

    def encode(self, encoder: Any) -> Any:
        """The encoder's output for this batch."""
        if self.cu_seqlens is None:
            return encoder(self.x, lengths=self.lengths)
        return encoder(self.x, cu_seqlens=self.cu_seqlens)

    def rows(self) -> Tensor:
        """``[B, T]`` or ``[1, total]`` int64: which sequence each step belongs to."""
        numbers = torch.arange(len(self.lengths), device=self.x.device)
        if self.cu_seqlens is None:
            return numbers[:, None].expand(self.x.shape[:2])
        return torch.repeat_interleave(numbers, self.lengths)[None]

    def steps(self) -> Tensor:
        """``[B, T]`` or ``[1, total]`` bool: False at pads."""
        if self.cu_seqlens is not None:
            return torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        return torch.arange(self.x.shape[1], device=self.x.device) < self.lengths[:, None]


def collate(samples: Sequence[Sample], per_step: bool = False) -> Batch:
    """Pad to the longest sequence of the batch.

    Args:
        samples: with one target each, or with ``per_step`` one for every step.
    """
    lengths = torch.tensor([len(sample.x) for sample in samples])
    targets = [sample.target for sample in samples]
    if per_step:
        nothing = IGNORE if not targets[0].is_floating_point() else float("nan")
        joined = pad_sequence(targets, batch_first=True, padding_value=nothing)
    else:
        joined = torch.stack(targets)
    return Batch(_numbers(pad_sequence([sample.x for sample in samples], batch_first=True)), lengths, joined)


def pack(samples: Sequence[Sample], per_step: bool = False) -> Batch:
    """Concatenate the sequences."""
    lengths = torch.tensor([len(sample.x) for sample in samples])
    targets: List[Tensor] = [sample.target for sample in samples]
    joined = torch.cat(targets)[None] if per_step else torch.stack(targets)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Batch(_numbers(torch.cat([sample.x for sample in samples])[None]), lengths, joined, offsets)


def _numbers(x: Tensor) -> Tensor:
    """Convert token ids, which may be stored in smaller integers, to int64."""
    return x if x.is_floating_point() else x.long()

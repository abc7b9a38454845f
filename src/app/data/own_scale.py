"""Each sequence on a scale of its own, for data whose scale spans orders of magnitude."""

from collections import abc
from dataclasses import replace
from typing import List, Sequence

import torch
from torch import Tensor

from app.data.sequences import SequenceData, SequenceSet

__all__ = ["OwnScale", "own_scale", "with_own_scale"]


def own_scale(x: Tensor) -> Tensor:
    """``[T, D]`` to ``[T, 2 D]``: channels with mean 0 and standard deviation 1, and what that deviation was.

    The second half is ``log10(std + 1e-6) / 3``, the same at all steps. Missing values (NaN) count nowhere and stay.

    Example:
        >>> [[round(number, 2) for number in step] for step in own_scale(torch.tensor([[0.0], [20.0]])).tolist()]
        [[-1.0, 0.33], [1.0, 0.33]]
    """
    mean = x.nanmean(0)
    std = (x - mean).square().nanmean(0).sqrt()
    scaled = (x - mean) / torch.where(std > 0, std, torch.ones_like(std))
    return torch.cat([scaled, (torch.log10(std + 1e-6) / 3).expand_as(x)], 1)


class OwnScale(abc.Sequence):
    """`own_scale` of many sequences, each made when it is asked for.

    Args:
        parts: what a `SequenceSet` holds.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Tensor:
        return own_scale(self.parts[index])

    def select(self, indices: Sequence[int]) -> "OwnScale":
        """Those at ``indices``, in that order."""
        return OwnScale(_set(self.parts).subset(indices).sequences)

    @property
    def lengths(self) -> List[int]:
        """Steps of each sequence."""
        return _set(self.parts).lengths


def with_own_scale(data: SequenceData) -> SequenceData:
    """The same data, every sequence by `own_scale`; token ids stay as they are."""
    if data.input_size is None:
        return data
    test = None if data.test is None else _scaled(data.test)
    longer = {name: _scaled(part) for name, part in data.longer.items()}
    return replace(data, train=_scaled(data.train), test=test, longer=longer, input_size=2 * data.input_size)


def _scaled(part: SequenceSet) -> SequenceSet:
    return replace(part, sequences=OwnScale(part.sequences))


def _set(parts: Sequence[Tensor]) -> SequenceSet:
    return SequenceSet(parts, torch.zeros(len(parts)))

"""Sequences that are prepared by the input pipeline when they are read, not before."""

from typing import List

import torch
from torch import Tensor
from torch.utils.data import Dataset

from encoders.errors import DataError, data_error
from encoders.pipeline import InputPipeline
from encoders.training.data.identity import Identity
from encoders.training.data.sampler import filler
from encoders.training.data.sequences import IGNORE, Sample, SequenceSet

__all__ = ["Prepared"]

LARGEST = 1e15
"""Of a standardised value: the squares of what is made of it must be finite in 32 bits."""


class Prepared(Dataset):
    """A view of a `SequenceSet`; nothing is copied, so that data larger than memory stay where they are.

    Args:
        data: as the source gives it.
        pipeline: of the run.
        shift: the target of each step is the next step's input (``next_step``); the last step has none and is left
            out, and so are sequences of one step.
    """

    def __init__(self, data: SequenceSet, pipeline: InputPipeline, shift: bool = False) -> None:
        self.data, self.pipeline, self.shift = data, pipeline, shift
        lengths = data.lengths
        self._index = [i for i, n in enumerate(lengths) if n > 1] if shift else list(range(len(lengths)))
        self.lengths: List[int] = [lengths[i] - 1 if shift else lengths[i] for i in self._index]

    def __len__(self) -> int:
        return len(self._index)

    @property
    def identity(self) -> Identity:
        """The number of each sequence in the data."""
        names, files = (None if held is None else [held[i] for i in self._index] for held in
                        (self.data.names, self.data.files))
        return Identity(self._index, names, files)

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            return _without_target(self[filler(index)])
        x, target = self.data[self._index[index]]
        if x.is_floating_point():  # token ids may stay in few bytes
            raw, x = x, self.pipeline.transform(x)
            if not bool((x.abs() <= LARGEST).all()):
                raise self._too_large(self._index[index], raw, x)
        if not self.shift:
            return Sample(x, target)
        return Sample(x[:-1], x[1:] if x.is_floating_point() else x[1:].long())

    def _too_large(self, number: int, raw: Tensor, x: Tensor) -> DataError:
        step, channel = (~(x.abs() <= LARGEST)).nonzero()[0].tolist()
        name = number + 1 if self.data.names is None else repr(self.data.names[number])
        value = float(raw[step, channel % raw.shape[1]])
        return data_error("data", f"sequence {name}, step {step + 1}, channel {channel % raw.shape[1] + 1}",
                          f"must be below {LARGEST:g} once it is standardised", value,
                          "a norm would make zeros of it; correct the value, or leave the sequence out")


def _without_target(sample: Sample) -> Sample:
    nothing: Tensor = torch.full_like(sample.target, float("nan") if sample.target.is_floating_point() else IGNORE)
    return Sample(sample.x, nothing)

"""Missing values and the scale of every channel, both measured on training data only."""

from dataclasses import dataclass
from typing import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from app.data.sequences import SequenceSet

__all__ = ["Standardizer", "fill_forward"]

_BLOCK = 1 << 20  # steps that are measured together


@dataclass
class Standardizer:
    """``(x - mean) / std`` for each channel. Missing values (NaN) become the mean, or the value before.

    Attributes:
        mean, std: ``[D]`` float64; the std of a channel that never changes is 1.
        missing: ``error`` (the source has refused them), ``mean`` or ``forward``.
    """

    mean: Tensor
    std: Tensor
    missing: str = "error"

    @classmethod
    def fit(cls, data: SequenceSet, missing: str = "error") -> "Standardizer":
        """Measure mean and standard deviation over all steps of ``data``, in float64, missing values left out."""
        size = data.sequences[0].shape[1]
        total, count = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for block in _blocks(data.sequences):
            total += block.nansum(0)
            count += (~block.isnan()).sum(0)
        mean = total / count.clamp(min=1)
        spread = torch.zeros_like(mean)
        for block in _blocks(data.sequences):
            spread += (block - mean).square().nansum(0)
        std = (spread / count.clamp(min=1)).sqrt()
        return cls(mean, torch.where(std > 0, std, torch.ones_like(std)), missing)

    @classmethod
    def identity(cls, input_size: int, missing: str = "error") -> "Standardizer":
        """A standardiser that changes nothing (and fills missing values with zero, or the value before)."""
        zeros = torch.zeros(input_size, dtype=torch.float64)
        return cls(zeros, zeros + 1, missing)

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, D]`` to ``[T, D]`` float32, computed in float64."""
        if self.missing == "forward":
            x = fill_forward(x)
        x = ((x - self.mean) / self.std).float()
        return x if self.missing == "error" else torch.where(x.isnan(), torch.zeros_like(x), x)


def fill_forward(x: Tensor) -> Tensor:
    """``[T, D]`` with every NaN replaced by the last value before it in its channel, or else by the first after it.

    A channel without any value keeps its NaN.

    Example:
        >>> nan = float("nan")
        >>> fill_forward(torch.tensor([[nan], [1.0], [nan], [2.0]])).flatten().tolist()
        [1.0, 1.0, 1.0, 2.0]
    """
    known = ~x.isnan()
    if bool(known.all()):
        return x
    steps = torch.arange(len(x))[:, None].expand_as(x)
    before = torch.where(known, steps, torch.full_like(steps, -1)).cummax(0).values
    first = torch.where(known, steps, torch.full_like(steps, len(x) - 1)).amin(0)
    return x.gather(0, torch.where(before < 0, first.expand_as(before), before))


def _blocks(sequences: Sequence[Tensor]) -> Iterator[Tensor]:
    """The steps of all sequences, many together, in float64."""
    found: list = []
    steps = 0
    for sequence in _iterate(sequences):
        found.append(sequence)
        steps += len(sequence)
        if steps >= _BLOCK:
            yield torch.cat(found).double()
            found, steps = [], 0
    if found:
        yield torch.cat(found).double()


def _iterate(sequences: Sequence[Tensor]) -> Iterable[Tensor]:
    return (sequences[i] for i in range(len(sequences)))

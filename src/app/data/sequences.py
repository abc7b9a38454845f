"""Labelled sequences in memory, and what is done to them before training: split and standardise."""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from app.errors import data_error

__all__ = ["SequenceData", "SequenceSet", "Standardizer", "stratified_split"]


@dataclass
class SequenceSet:
    """Sequences of any length with one label each.

    Attributes:
        sequences: N tensors ``[T_i, D]``, float32.
        labels: ``[N]`` int64, indices into the class names of `SequenceData`.
    """

    sequences: List[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Tuple[Tensor, Tensor]:
        return self.sequences[index], self.labels[index]

    def subset(self, indices: Sequence[int]) -> "SequenceSet":
        """The sequences at ``indices``, in that order."""
        return SequenceSet([self.sequences[i] for i in indices], self.labels[list(indices)])

    @property
    def tokens(self) -> int:
        """Number of steps in all sequences together."""
        return sum(len(sequence) for sequence in self.sequences)


@dataclass
class SequenceData:
    """What every data source of the application returns.

    Attributes:
        train, test: the sequences as the source gives them, not yet standardised.
        classes: class names; a label is an index into them.
        input_size: D, the number of channels.
    """

    train: SequenceSet
    test: SequenceSet
    classes: List[str]
    input_size: int


@dataclass
class Standardizer:
    """Per-channel ``(x - mean) / std``, measured on training data only.

    Attributes:
        mean, std: ``[D]`` float32; the std of a channel that never changes is 1.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, data: SequenceSet) -> "Standardizer":
        """Measure mean and standard deviation over all steps of ``data``, in float64."""
        steps = torch.cat(data.sequences).double()
        std = steps.std(dim=0, unbiased=False)
        return cls(steps.mean(dim=0).float(), torch.where(std > 0, std, torch.ones_like(std)).float())

    @classmethod
    def identity(cls, input_size: int) -> "Standardizer":
        """A standardiser that changes nothing."""
        return cls(torch.zeros(input_size), torch.ones(input_size))

    def __call__(self, data: SequenceSet) -> SequenceSet:
        return SequenceSet([(sequence - self.mean) / self.std for sequence in data.sequences], data.labels)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> Tuple[List[int], List[int]]:
    """Split indices in two so that every class keeps its share.

    Args:
        labels: ``[N]`` int64.
        fraction: share of each class in the second part, in (0, 1); rounded, at least one of every class.
        seed: fixes the choice; the same seed gives the same split on every machine.

    Returns:
        two sorted lists of indices: the larger part, the held-out part.

    Raises:
        DataError: a class has fewer than two sequences, so it cannot be in both parts.

    Example:
        >>> stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)[1]
        [2, 6]
    """
    generator = torch.Generator().manual_seed(seed)
    members: Dict[int, List[int]] = {}
    for index, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(index)
    kept: List[int] = []
    held: List[int] = []
    for label in sorted(members):
        indices = members[label]
        if len(indices) < 2:
            raise data_error(
                "data", "training set", f"must have two sequences of class {label} to validate on one", len(indices)
            )
        order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        count = min(len(indices) - 1, max(1, round(fraction * len(indices))))
        held += order[:count]
        kept += order[count:]
    return sorted(kept), sorted(held)

"""Sequences with targets, as every source returns them: in memory, or views of a memory-mapped file."""

from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from torch import Tensor

from encoders.schema import InputSchema

__all__ = ["IGNORE", "Sample", "SequenceData", "SequenceSet"]

#: The class of a step without a target, which is ignored in losses and figures. For values it is NaN.
IGNORE = -100


class Sample(NamedTuple):
    """One sequence.

    Attributes:
        x: ``[T, D]`` float features or ``[T]`` integer token ids.
        target: a class (int64 scalar) or values (``[K]`` float32); per step ``[T]`` or ``[T, K]``.
    """

    x: Tensor
    target: Tensor


@dataclass
class SequenceSet:
    """Sequences of any length, each with its target.

    Attributes:
        sequences: N tensors ``[T_i, D]`` float32 or float64, NaN where a value is missing; or ``[T_i]`` of integer
            token ids; a list, or made when they are requested.
        targets: one for each sequence: ``[N]`` int64 indices into the classes, or ``[N, K]`` float32 values; one for
            each step: N tensors ``[T_i]`` or ``[T_i, K]``, with `IGNORE` or NaN at steps without one.
        groups: ``[N]`` int64; sequences of one group (a patient, a recording) stay on one side of every split. -1 is
            no group but a part of two: such a sequence is not in a set that is split.
        names: the name of each sequence in the source, if it has one.
        files: the file of each sequence, if it comes from one.

    Example:
        >>> import torch
        >>> data = SequenceSet([torch.zeros(3, 2), torch.ones(5, 2)], torch.tensor([0, 1]))
        >>> len(data), data.lengths, data.tokens, int(data[1].target)
        (2, [3, 5], 8, 1)
        >>> data.subset([1]).sequences[0].shape
        torch.Size([5, 2])
    """

    sequences: Sequence[Tensor]
    targets: Union[Tensor, Sequence[Tensor]]
    groups: Optional[Tensor] = None
    names: Optional[List[str]] = None
    files: Optional[List[str]] = None

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.sequences[index], self.targets[index])

    def subset(self, indices: Sequence[int]) -> "SequenceSet":
        """The sequences at ``indices``, in that order."""
        indices = list(indices)
        targets = self.targets[indices] if isinstance(self.targets, Tensor) else _select(self.targets, indices)
        groups = None if self.groups is None else self.groups[indices]
        names, files = (None if held is None else [held[i] for i in indices] for held in (self.names, self.files))
        return SequenceSet(_select(self.sequences, indices), targets, groups, names, files)

    @property
    def lengths(self) -> List[int]:
        """Steps of each sequence."""
        known = getattr(self.sequences, "lengths", None)
        return [len(sequence) for sequence in self.sequences] if known is None else known

    @property
    def tokens(self) -> int:
        """Number of steps in all sequences together."""
        return sum(self.lengths)


def _select(parts: Sequence[Tensor], indices: List[int]) -> Sequence[Tensor]:
    return parts.select(indices) if hasattr(parts, "select") else [parts[i] for i in indices]


@dataclass
class SequenceData:
    """What every data source of the application returns.

    Attributes:
        train, test: the sequences as the source gives them, not yet standardised; no ``test``: a part of ``train``
            will be split off.
        classes: class names, a target being an index into them; None where targets are values or missing.
        input_size: D, the number of channels; None for tokens.
        vocab_size: number of token ids; None for features.
        per_step: one target for each step, not one for each sequence.
        target_names: of the K values, for targets that are numbers.
        longer: further test sets by name, e.g. longer ones; their figures are reported too.
        schema: the columns of the features; None for channels without names, and for tokens.

    Example:
        >>> import torch
        >>> part = SequenceSet([torch.zeros(3, 2)], torch.tensor([0]))
        >>> data = SequenceData(part, part, ["up", "down"], input_size=2, longer={"long": part})
        >>> [name for name, _ in data.tests]
        ['test', 'test_long']
    """

    train: SequenceSet
    test: Optional[SequenceSet]
    classes: Optional[List[str]]
    input_size: Optional[int] = None
    vocab_size: Optional[int] = None
    per_step: bool = False
    target_names: Optional[List[str]] = None
    longer: Dict[str, SequenceSet] = field(default_factory=dict)
    schema: Optional[InputSchema] = None

    @property
    def tests(self) -> List[Tuple[str, SequenceSet]]:
        """``(name, set)`` of every test set; the name of the first is ``test``."""
        first = [] if self.test is None else [("test", self.test)]
        return first + [(f"test_{name}", data) for name, data in self.longer.items()]

"""Chooses training and held-out sequences: classes keep their shares, groups stay together."""

from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from encoders.errors import data_error
from encoders.training.data.sequences import SequenceData, SequenceSet

__all__ = ["class_counts", "group_split", "split", "stratified_split"]


def split(data: SequenceSet, fraction: float, seed: int, classes: Optional[Sequence[str]] = None,
          counts: str = "") -> Tuple[List[int], List[int]]:
    """Split a set in two: by groups if it has groups, otherwise by class if each sequence has one class.

    Args:
        data: at least two sequences.
        fraction: share of the second part, in (0, 1).
        seed: fixes the choice; the same seed gives the same split on every machine.
        classes, counts: names of the classes, and how many sequences of each there were, for messages.

    Returns:
        two sorted lists of indices: the larger part, the held-out part.

    Raises:
        DataError: too few sequences, groups, or sequences of a class.
    """
    if data.groups is not None:
        return group_split(data.groups, fraction, seed)
    targets = data.targets
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        return stratified_split(targets, fraction, seed, classes, counts)
    if len(data) < 2:
        raise data_error("data", "training set", "must have two sequences, to hold one out", len(data))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(len(order) - 1, max(1, round(fraction * len(order))))
    return sorted(order[count:]), sorted(order[:count])


def group_split(groups: Tensor, fraction: float, seed: int) -> Tuple[List[int], List[int]]:
    """Split indices in two so that no group is on both sides.

    Groups come in random order and are held out while that brings the held-out share closer to ``fraction``; at least
    one group is on each side.

    Args:
        groups: ``[N]`` int64.
        fraction: share of the sequences in the second part, in (0, 1).
        seed: fixes the choice.

    Raises:
        DataError: fewer than two groups.

    Example:
        >>> group_split(torch.tensor([7, 7, 8, 8, 9, 9]), 0.34, seed=0)
        ([0, 1, 2, 3], [4, 5])
    """
    names, sizes = groups.unique(return_counts=True)
    if len(names) < 2:
        raise data_error("data", "groups", "must be at least two, to hold one out", len(names),
                         "groups are not split: there must be one to train on, one to test on without a test file, and "
                         "one to validate on unless data.validation_fraction is 0")
    wanted, count = fraction * len(groups), 0
    held: List[int] = []
    for place in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        size = int(sizes[place])
        closer = abs(count + size - wanted) < abs(count - wanted)
        if (closer or not held) and len(held) < len(names) - 1:
            held.append(int(names[place]))
            count += size
    out = torch.isin(groups, torch.tensor(held))
    return (~out).nonzero().flatten().tolist(), out.nonzero().flatten().tolist()


def stratified_split(labels: Tensor, fraction: float, seed: int, classes: Optional[Sequence[str]] = None,
                     counts: str = "") -> Tuple[List[int], List[int]]:
    """Split indices in two so that every class keeps its share.

    Args:
        labels: ``[N]`` int64.
        fraction: share of each class in the second part, in (0, 1); rounded, at least one of every class.
        seed: fixes the choice; the same seed gives the same split on every machine.
        classes, counts: for messages, as in `split`.

    Returns:
        two sorted lists of indices: the larger part, the held-out part.

    Raises:
        DataError: a class has fewer than two sequences, so it cannot be in both parts.

    Example:
        >>> stratified_split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)[1]
        [0, 4]
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
            name = label if classes is None else repr(classes[label])
            there = f"there were {counts}; " if counts else ""
            raise data_error("data", "training set", f"must have two sequences of class {name}, to hold one out",
                             len(indices), there + "add some, leave the class out, or merge it with another; each "
                             "class needs one to train on, one to test on without a test file, and one to validate on "
                             "unless data.validation_fraction is 0")
        order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        count = min(len(indices) - 1, max(1, round(fraction * len(indices))))
        held += order[:count]
        kept += order[count:]
    return sorted(kept), sorted(held)


def class_counts(data: SequenceData) -> str:
    """The number of sequences of each class in all sets together, in words; "" if sequences have no single class."""
    targets = [part.targets for part in (data.train, *(part for _, part in data.tests))]
    flat = [t for t in targets if isinstance(t, Tensor) and t.dim() == 1 and not t.is_floating_point()]
    if data.classes is None or len(flat) < len(targets):
        return ""
    joined = torch.cat(flat)
    counts = torch.bincount(joined[joined >= 0], minlength=len(data.classes)).tolist()
    shown = [f"{name} {count}" for count, name in sorted(zip(counts, data.classes), key=lambda pair: pair[0])]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")

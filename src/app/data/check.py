"""Checks of the data of every source; makes a test set if the source has none."""

import logging
from pathlib import Path
from typing import Iterable, List

import torch
from torch import Tensor

from app.data.tables.natural import natural
from app.errors import data_error
from cfg.data import DataConfig
from encoders.training.data.sequences import SequenceData, SequenceSet
from encoders.training.data.split import class_counts, split

__all__ = ["checked", "warn_shared"]

log = logging.getLogger(__name__)


def checked(data: SequenceData, config: DataConfig) -> SequenceData:
    """The data with a test set, after checks for everything that would make training or testing fail.

    Without a test set, ``config.test_fraction`` of the sequences are split off, always the same ones, so that runs of
    different seeds can be compared.

    Raises:
        DataError: no sequences, a sequence without steps, one class only, a class in the test set that the training
            set does not have, or too few to split.
    """
    who = f"data={config.name}"
    data.train = _in_order(_of_one_group(data.train))
    data.test = None if data.test is None else _in_order(data.test)
    if data.test is None:
        _check_some(who, "all", data.train)
        kept, held = split(data.train, config.test_fraction, 0, data.classes, class_counts(data))
        data.train, data.test = data.train.subset(kept), data.train.subset(held)
    _check_some(who, "training set", data.train)
    for name, part in data.tests:
        _check_some(who, name.replace("_", " ") + " set", part)
    if data.classes is not None:
        _check_classes(who, data)
    return data


def warn_shared(train: Iterable[Path], test: Iterable[Path]) -> None:
    """Warn if a file is both trained and tested on."""
    shared = sorted({path.resolve() for path in train} & {path.resolve() for path in test})
    if shared:
        log.warning("%s: both trained and tested on; the test figures say nothing about new data",
                    ", ".join(path.name for path in shared[:5]))


def _of_one_group(part: SequenceSet) -> SequenceSet:
    """The data without windows that share steps with two groups, which would reveal each to the other."""
    if part.groups is None or bool((part.groups >= 0).all()):
        return part
    return part.subset((part.groups >= 0).nonzero().flatten().tolist())


def _in_order(part: SequenceSet) -> SequenceSet:
    """Sorted by name, if sequences have names, so that the order of rows and files does not matter."""
    if part.names is None:
        return part
    names = part.names
    order = sorted(range(len(part)), key=lambda i: natural(names[i]))
    return part if order == list(range(len(part))) else part.subset(order)


def _check_some(who: str, name: str, part: SequenceSet) -> None:
    if not len(part):
        raise data_error(who, name, "must have at least one sequence", 0)
    empty = [i for i, length in enumerate(part.lengths) if length == 0]
    if empty:
        raise data_error(who, f"{name}, sequence {empty[0] + 1}", "must have at least one step", 0,
                         f"remove it, and {len(empty) - 1} more like it" if len(empty) > 1 else "remove it")


def _check_classes(who: str, data: SequenceData) -> None:
    classes = data.classes or []
    known = _classes(data.train)
    if len(known) < 2:
        names = ", ".join(classes[i] for i in known) or "none"
        raise data_error(who, "training set", "must have sequences of at least two classes", names,
                         "there is nothing to classify")
    for name, part in data.tests:
        unknown = [classes[i] for i in _classes(part) if i not in known]
        if unknown:
            raise data_error(who, name.replace("_", " ") + " set", "must have only classes that the training set has",
                             ", ".join(unknown[:5]), "they cannot be learned; remove these sequences or add some to "
                             "the training set")


def _classes(part: SequenceSet) -> List[int]:
    flat = part.targets if isinstance(part.targets, Tensor) else torch.cat(list(part.targets))
    return flat[flat >= 0].unique().tolist()

"""Long recordings, cut into windows of equal length."""

from typing import Any, List, Tuple

import numpy as np
import torch

from app.data.part import Part
from app.data.tables import Table
from app.data.views import Views
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["cut"]

_MANY = 5  # with this many recordings or more, a recording is never split
_PIECES = 20  # fewer recordings are each cut into this many contiguous parts, without common steps


def cut(part: Part, table: Table, config: TableDataConfig) -> Part:
    """Windows of ``config.window`` steps, one every ``config.stride`` steps; the steps after the last complete window
    are left out. The class of a window is the most frequent one of its steps (if several are, the first of them).

    Windows of one recording resemble each other. So that no step is in two parts of a split, each recording is a group;
    if there are few recordings, contiguous parts of them are groups. A window that lies in two parts has group -1, and
    `app.data.check.checked` leaves it out if a split follows.

    Raises:
        DataError: no recording is as long as a window, or a target changes within a window.
    """
    size, stride = int(config.window or 1), int(config.stride or config.window or 1)
    begins = part.sequences.starts.tolist()
    ends = part.sequences.ends.tolist()
    starts: List[int] = []
    owners: List[int] = []
    groups: List[int] = []
    before = 0
    for number, (begin, end) in enumerate(zip(begins, ends)):
        found = np.arange(begin, end - size + 1, stride)
        pieces = 1 if len(begins) >= _MANY else max(1, min(_PIECES, (end - begin) // (4 * size)))
        edges = [begin + (end - begin) * i // pieces for i in range(1, pieces)]
        low, high = (np.searchsorted(edges, steps, side="right") for steps in (found, found + size - 1))
        starts += found.tolist()
        owners += [number] * len(found)
        groups += np.where(low == high, low + before, -1).tolist()
        before += pieces
    if not starts:
        longest = max((end - begin for begin, end in zip(begins, ends)), default=0)
        raise data_error(table.path, "recordings", f"must be as long as data.window={size}", f"{longest} steps at most",
                         "lower data.window")
    first = np.array(starts, dtype=np.int64)
    owner = np.array(owners, dtype=np.int64)
    views = Views(part.sequences.values, torch.from_numpy(first), torch.from_numpy(first + size))
    names = [f"{part.names[o]}[{s - begins[o]}:{s - begins[o] + size}]" for s, o in zip(starts, owners)] \
        if part.names is not None else None
    group = np.array(groups, dtype=np.int64) if part.groups is None else part.groups[owner]
    texts: Any = [str(i) for i in range(before)] if part.groups is None else part.group_names
    made = part._replace(sequences=views, names=names, files=[part.files[o] for o in owners], groups=group,
                         group_names=texts)
    if config.per_step:
        return made
    if part.labels is not None:
        labels, kept = _majority(part.labels, first, size)
        made = made._replace(labels=labels)
        return made if kept.all() else _select(made, kept)
    if part.values is not None:
        made = made._replace(values=_same(part.values, first, size, table, config))
    return made


def _majority(labels: np.ndarray, first: np.ndarray, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """The most frequent label of each window, and which windows have any."""
    found = np.full(len(first), -1, dtype=np.int64)
    for i, start in enumerate(first.tolist()):
        inside = labels[start : start + size]
        inside = inside[inside >= 0]
        if len(inside):
            codes, places, counts = np.unique(inside, return_index=True, return_counts=True)
            most = counts == counts.max()
            found[i] = codes[most][places[most].argmin()]
    return found, found >= 0


def _same(values: np.ndarray, first: np.ndarray, size: int, table: Table, config: TableDataConfig) -> np.ndarray:
    for start in first.tolist():
        inside = values[start : start + size]
        if (inside != inside[0]).any():
            column = int(np.argwhere(inside != inside[0])[0][1])
            raise data_error(table.path, f"column {(config.targets or [''])[column]!r}",
                             "must be the same in all steps of a window", float(inside[:, column].max()),
                             "or set data.per_step=true")
    return np.ascontiguousarray(values[first])


def _select(part: Part, kept: np.ndarray) -> Part:
    places = np.flatnonzero(kept)
    names = None if part.names is None else [part.names[i] for i in places]
    labels, groups = (None if codes is None else codes[kept] for codes in (part.labels, part.groups))
    return part._replace(sequences=part.sequences.select(places.tolist()), names=names,
                         files=[part.files[i] for i in places], labels=labels, groups=groups)

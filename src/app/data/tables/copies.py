"""Columns of numbers that copy the label, the sequence's number or the row's number."""

from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

import numpy as np

from app.data.tables.table import Table

__all__ = ["Read", "find_copies", "row_blocks"]

#: ``(rows before, [rows] float64 by column)`` for some columns, block after block.
Read = Callable[[Sequence[str]], Iterator[Tuple[int, Mapping[str, np.ndarray]]]]

_FEW = 5  # with fewer rows, whole numbers may count them by chance
_INDEX = ("index", "level_0", "rownames")


class _Renamed:
    """Whether values and numbers correspond one to one.

    Args:
        codes: the numbers at each row.
        seen: how many independent values there are: few values may be a copy by chance. whole: whether only whole
            values count.
    """

    def __init__(self, codes: np.ndarray, seen: int, whole: bool = False) -> None:
        self.codes, self.seen, self.whole = codes, seen, whole
        self.there: Dict[float, int] = {}
        self.back: Dict[int, float] = {}

    def goes_on(self, values: np.ndarray, first: int) -> bool:
        codes = self.codes[first : first + len(values)]
        known = codes >= 0
        if not known.any():
            return True
        values, codes = values[known], codes[known]
        if np.isnan(values).any() or (self.whole and (values != np.floor(values)).any()):
            return False
        order = np.lexsort((codes, values))
        values, codes = values[order], codes[order]
        new = np.concatenate([[True], (values[1:] != values[:-1]) | (codes[1:] != codes[:-1])])
        if new.sum() > len(np.unique(values)):  # a value with two numbers
            return False
        return all(self.there.setdefault(value, code) == code and self.back.setdefault(code, value) == value
                   for value, code in zip(values[new].tolist(), codes[new].tolist()))

    def holds(self) -> bool:
        values = list(self.there)
        if not self.whole:
            return 1 < len(values) <= self.seen // 2
        return len(values) >= _FEW or (len(values) > 1 and max(values) - min(values) < len(values))


class _Rows:
    """Whether whole numbers count the rows of the table or of each file, in any order."""

    def __init__(self, edges: np.ndarray, name: str) -> None:
        self.edges, self.named = edges, name in _INDEX
        self.found: List[np.ndarray] = []

    def goes_on(self, values: np.ndarray, first: int) -> bool:
        if (values != np.floor(values)).any() or np.isnan(values).any():
            return False
        if not self.named and len(values) >= _FEW and len(np.unique(values)) < len(values):
            return False
        self.found.append(values)
        return True

    def holds(self) -> bool:
        values = np.concatenate(self.found)
        parts = [values[a:b] for a, b in zip(self.edges[:-1], self.edges[1:]) if b > a]
        if self.named:
            return all(len(np.unique(part)) == len(part) for part in parts)
        return _counts(values) or all(_counts(part) for part in parts)


def _counts(values: np.ndarray) -> bool:
    return len(values) >= _FEW and values.max() - values.min() == len(values) - 1 == len(np.unique(values)) - 1


class _Equal:
    """Whether values equal the target, up to scale and shift."""

    def __init__(self, targets: np.ndarray) -> None:
        self.targets = targets
        self.points: List[Tuple[float, float]] = []
        self.seen: Set[float] = set()

    def goes_on(self, values: np.ndarray, first: int) -> bool:
        targets = self.targets[first : first + len(values)]
        known = ~np.isnan(targets)
        values, targets = values[known], targets[known]
        if np.isnan(values).any():
            return False
        if len(self.seen) < 3:
            self.seen.update(np.unique(targets)[:3].tolist())
        for point in zip(targets[:1], values[:1]) if not self.points else ():
            self.points.append(point)
        if len(self.points) == 1:
            apart = np.flatnonzero(targets != self.points[0][0])[:1]
            self.points += [(targets[i], values[i]) for i in apart]
        if len(self.points) < 2:
            return bool((values == self.points[0][1]).all()) if self.points else True
        (t, v), (u, w) = self.points
        line = v + (targets - t) * ((w - v) / (u - t))
        return w != v and bool((np.abs(values - line) <= 1e-9 * max(abs(v), abs(w), abs(w - v))).all())

    def holds(self) -> bool:
        return len(self.seen) > 2  # through two points there is always a line


def row_blocks(table: Table) -> Read:
    """The rows of a table, for `find_copies`."""
    def read(names: Sequence[str]) -> Iterator[Tuple[int, Mapping[str, np.ndarray]]]:
        for block in table.blocks(names):
            yield block.first, {name: block.numbers(name) for name in dict.fromkeys(names)}

    return read


def find_copies(read: Read, edges: np.ndarray, names: Sequence[str], label: Optional[np.ndarray], labels: int,
                sequence: Optional[np.ndarray], targets: Mapping[str, np.ndarray]) -> Dict[str, str]:
    """The columns that are suspicious, with the reason. One pass, over few columns and rows if there are no copies.

    Args:
        read: their values, row after row, or step after step of lists.
        edges: ``[files + 1]``, the first row of each file, and the end.
        names: columns of numbers.
        label: ``[rows]`` int64, the class of each row, -1 if it has none; None without labels.
        labels: how many labels there are, one for each sequence or each row.
        sequence: ``[rows]`` int64, the sequence of each row; None if each row is a sequence.
        targets: ``[rows]`` float64 by column.
    """
    claims: List[Tuple[str, str, Union[_Rows, _Renamed, _Equal]]] = []
    count = 0 if sequence is None else int(sequence.max()) + 1
    classes = 0 if label is None else len(np.unique(label[label >= 0]))
    for name in names:
        claims.append((name, "row number", _Rows(edges, name)))
        if label is not None and classes > 1:
            claims.append((name, "copy of the label", _Renamed(label, labels)))
        claims += [(name, f"copy of {target}", _Equal(values)) for target, values in targets.items()]
        if sequence is not None and len(sequence) >= 2 * count:
            claims.append((name, "copy of the sequence's number", _Renamed(sequence, count, whole=True)))
    done = 0
    for first in (True, False):  # the first block of all; the others of the few that are left
        for start, values in read([name for name, _, _ in claims]) if claims else ():
            if start < done:
                continue
            claims = [claim for claim in claims if claim[2].goes_on(values[claim[0]], start)]
            done = start + len(next(iter(values.values())))
            if first or not claims:
                break
    found: Dict[str, str] = {}
    for name, why, claim in claims:
        if claim.holds():
            found.setdefault(name, why)
    return found

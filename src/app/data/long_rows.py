"""The order of the rows of a long table: which sequence each belongs to, and its place in it."""

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import numpy as np

from app.data.tables import Table
from app.data.tables.cells import REAL, WHOLE, show_time
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["Names", "Order", "check_written", "order_rows"]

_WAYS = "set data.ids=per_file if these are two sequences, or data.ids=global if it is one"


class Names:
    """Numbers texts in the order of their first occurrence."""

    def __init__(self) -> None:
        self._known: Dict[Any, int] = {}

    def codes(self, texts: Sequence[Any]) -> np.ndarray:
        """``[n]`` int64; -1 for a missing text."""
        known = self._known
        return np.array([-1 if text is None else known.setdefault(text, len(known)) for text in texts], dtype=np.int64)

    @property
    def names(self) -> List[Any]:
        return list(self._known)


@dataclass
class Order:
    """The places of the rows of a table in the array of all sequences.

    Attributes:
        rows: number of rows.
        names: names of the sequences, in the order of their first rows.
        files: numbers of the files in which they begin.
        starts, ends: ``[N]`` int64, the places of the rows of each sequence.
        labels: ``[N]`` int64 numbers of label names, or one for each row, in the order of the places; -1 for a missing
            label; None without a label column.
        label_names: names by number.
        groups: ``[N]``, as ``labels``; None without a group column.
        group_names: names by number.
        place: ``[rows]`` int64, the place of each row of the table; None if they are in order already.
        wanted: ``[rows]`` bool, the rows of the table that have a place; None for all.
        time: kind of the time column, or None.
    """

    rows: int
    names: List[str]
    files: List[int]
    starts: np.ndarray
    ends: np.ndarray
    labels: Optional[np.ndarray]
    label_names: List[str]
    groups: Optional[np.ndarray]
    group_names: List[str]
    place: Optional[np.ndarray]
    wanted: Optional[np.ndarray] = None
    time: Optional[str] = None

    def sequence_of_rows(self) -> np.ndarray:
        """``[rows]`` int64: which sequence each row of the table belongs to."""
        number = np.repeat(np.arange(len(self.starts)), self.ends - self.starts)
        return number if self.place is None else number[self.place]

    def only(self, chosen: np.ndarray) -> "Order":
        """Places for the rows of some sequences only; the other sequences are empty.

        Args:
            chosen: ``[N]`` bool.
        """
        sizes = self.ends - self.starts
        kept = np.where(chosen, sizes, 0)
        ends = np.cumsum(kept)
        number = self.sequence_of_rows()
        place = (np.arange(self.rows) if self.place is None else self.place) + (ends - kept - self.starts)[number]
        return replace(self, rows=int(kept.sum()), starts=ends - kept, ends=ends, place=place, wanted=chosen[number])

    def places(self, start: int, count: int) -> Any:
        """The places of ``count`` rows of the table, from row ``start`` on."""
        return slice(start, start + count) if self.place is None else self.place[start : start + count]


def order_rows(table: Table, config: TableDataConfig) -> Order:
    """Read the columns of sequences, times, labels and groups. Without ``data.sequence`` each file is a sequence.

    Raises:
        DataError: a row without a sequence, a time that is missing or occurs twice, a name in several files that may
            stand for several sequences, or a label or group that is missing or changes within a sequence.
    """
    number, label_names, group_names = Names(), Names(), Names()
    codes: List[np.ndarray] = []
    homes: List[np.ndarray] = []
    times: List[Tuple[np.ndarray, str]] = []
    labels: List[np.ndarray] = []
    groups: List[np.ndarray] = []
    wanted = [c for c in (config.sequence, config.time, config.label, config.group) if c is not None]
    several = config.ids == "per_file" or (config.sequence is None and config.ids is None)
    for block in table.blocks(wanted or list(table.facts)[:1]):
        file = int(np.searchsorted(table.starts, block.first, side="right")) - 1
        while table.counts[file] == 0:
            file += 1
        names: List[Any] = block.texts(config.sequence) if config.sequence else [block.name] * block.rows
        if None in names:
            raise block.error(names.index(None), str(config.sequence), "must name a sequence", None)
        if config.sequence is None and not several:
            names = [table.path] * block.rows
        codes.append(number.codes([(name, file) for name in names] if several else names))
        homes.append(np.full(block.rows, file, dtype=np.int32))
        if config.time is not None:
            times.append(block.times(config.time))
        if config.label is not None:
            labels.append(label_names.codes(block.texts(config.label)))
        if config.group is not None:
            groups.append(group_names.codes(block.texts(config.group)))
    code, home = np.concatenate(codes), np.concatenate(homes)
    known = [name[0] for name in number.names] if several else number.names
    if config.sequence is not None:
        check_written(table.path, config.sequence, set(known))
    time, kind = _one_kind(table, config, times) if times else (None, None)
    if len(table.files) > 1 and not several and config.ids is None:
        _check_files(table, known, code, home, time, kind)
    order = np.argsort(code, kind="stable") if time is None else np.lexsort((time, code))
    if time is not None:
        _check_times(table, config, known, code[order], time[order], str(kind))
    ends = np.cumsum(np.bincount(code, minlength=len(known)))
    starts = np.concatenate([[0], ends[:-1]])
    place = None
    if not np.array_equal(order, np.arange(len(order))):
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
    label = np.concatenate(labels)[order] if labels else None
    if label is not None and not config.per_step and config.window is None:
        label = _one_each(table, known, str(config.label), label, label_names.names, starts, ends,
                          " or set data.per_step=true")
    group = np.concatenate(groups)[order] if groups else None
    if group is not None:
        group = _one_each(table, known, str(config.group), group, group_names.names, starts, ends, "")
    return Order(len(code), known, home[order][starts].tolist(), starts, ends, label, label_names.names, group,
                 group_names.names, place, time=kind)


def check_written(path: str, column: str, names: Set[str]) -> None:
    """Refuse ``7`` together with ``7.0``: some programs write whole numbers as fractions if a cell of the column is
    empty.

    Raises:
        DataError: the message has both.
    """
    for name in names:
        whole, point, rest = name.partition(".")
        if point and set(rest) == {"0"} and whole in names:
            raise data_error(path, f"column {column!r}", "must write each name in one way", f"{whole} and {name}",
                             "write whole numbers without a fraction in all files")


def _one_kind(table: Table, config: TableDataConfig, times: List[Tuple[np.ndarray, str]]) -> Tuple[np.ndarray, str]:
    kinds = sorted({kind for _, kind in times})
    if len(kinds) > 1 and kinds != sorted([REAL, WHOLE]):
        raise data_error(table.path, f"column {config.time!r}", "must hold times of one kind", " and ".join(kinds))
    return np.concatenate([values for values, _ in times]), kinds[0] if len(kinds) == 1 else REAL


def _check_files(table: Table, names: List[str], code: np.ndarray, home: np.ndarray, time: Optional[np.ndarray],
                 kind: Optional[str]) -> None:
    """Check that the parts of a sequence in several files follow each other in time."""
    pair = code * len(table.files) + home
    order = np.argsort(pair, kind="stable") if time is None else np.lexsort((time, pair))
    starts = np.flatnonzero(np.concatenate([[True], pair[order][1:] != pair[order][:-1]]))
    ends = np.concatenate([starts[1:], [len(order)]]) - 1
    owner = code[order[starts]]
    if (owner[1:] != owner[:-1]).all():
        return
    if time is None:
        i = int(np.flatnonzero(owner[1:] == owner[:-1])[0])
        both = " and ".join(table.files[home[order[starts[j]]]].name for j in (i, i + 1))
        raise data_error(table.path, f"sequence {names[owner[i]]!r}", "must be in one file, where data.time does not "
                         "say how its parts follow each other", both, _WAYS)
    first, last = time[order[starts]], time[order[ends]]
    by_time = np.lexsort((first, owner))
    for i, j in zip(by_time[:-1], by_time[1:]):
        if owner[i] == owner[j] and first[j] <= last[i]:
            parts = [f"{table.files[home[order[starts[k]]]].name} ({show_time(first[k], str(kind))} to "
                     f"{show_time(last[k], str(kind))})" for k in (i, j)]
            raise data_error(table.path, f"sequence {names[owner[i]]!r}", "must not have parts in two files that "
                             "overlap in time", " and ".join(parts), _WAYS)


def _check_times(table: Table, config: TableDataConfig, names: List[str], code: np.ndarray, time: np.ndarray,
                 kind: str) -> None:
    twice = np.flatnonzero((code[1:] == code[:-1]) & (time[1:] == time[:-1]))
    if len(twice):
        row = int(twice[0])
        raise data_error(table.path, f"sequence {names[code[row]]!r}, column {config.time!r}",
                         "must not have the same time twice", show_time(time[row], kind))


def _one_each(table: Table, names: List[str], column: str, codes: np.ndarray, texts: List[str], starts: np.ndarray,
              ends: np.ndarray, hint: str) -> np.ndarray:
    first = codes[starts]
    same = codes == np.repeat(first, ends - starts)
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
        name = names[int(np.searchsorted(ends, row, side="right"))]
        raise data_error(table.path, f"sequence {name!r}, column {column!r}", "must be the same in all its rows",
                         texts[codes[row]] if codes[row] >= 0 else None, "correct it" + hint)
    for name, value in zip(names, first):
        if value < 0:
            raise data_error(table.path, f"sequence {name!r}, column {column!r}", "must have a value", None,
                             "give it one, or leave its rows out")
    return first

"""The order of the rows of a long table: which sequence each belongs to, and where in it it stands."""

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional

import numpy as np

from app.data.arrow import Table
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["Order", "order_rows"]


@dataclass
class Order:
    """Where rows go.

    Attributes:
        rows: how many there are.
        names: of the sequences, in the order in which they first come.
        starts, ends: ``[N]`` int64, the places of each sequence's rows.
        labels: one a sequence, or one a row, in the order of the places; None without a label column.
        groups: one a sequence; None without a group column.
        place: ``[rows]`` int64, the place of each row of the file; None where they stand in order already.
        wanted: ``[rows]`` bool, the rows of the file that have a place; None for all.
    """

    rows: int
    names: List[str]
    starts: np.ndarray
    ends: np.ndarray
    labels: Optional[np.ndarray]
    groups: Optional[np.ndarray]
    place: Optional[np.ndarray]
    wanted: Optional[np.ndarray] = None

    def only(self, chosen: np.ndarray) -> "Order":
        """Places for the rows of some sequences; the others have none and are empty.

        Args:
            chosen: ``[N]`` bool.
        """
        sizes = self.ends - self.starts
        kept = np.where(chosen, sizes, 0)
        ends = np.cumsum(kept)
        number = np.repeat(np.arange(len(sizes)), sizes)  # the sequence at each place
        if self.place is not None:
            number = number[self.place]
        place = (np.arange(self.rows) if self.place is None else self.place) + (ends - kept - self.starts)[number]
        return replace(self, rows=int(kept.sum()), starts=ends - kept, ends=ends, place=place, wanted=chosen[number])

    def places(self, start: int, count: int) -> Any:
        """Where ``count`` rows of the file go, from row ``start`` on."""
        return slice(start, start + count) if self.place is None else self.place[start : start + count]


def order_rows(table: Table, config: TableDataConfig) -> Order:
    """Read the columns that say what belongs together.

    Raises:
        DataError: a row without a sequence, a time that is missing or comes twice, or a label or group that is missing
            or changes within a sequence.
    """
    number: Dict[str, int] = {}
    codes, times = [], []
    labels: List[Any] = []
    groups: List[Any] = []
    wanted = [c for c in (config.sequence, config.time, config.label, config.group) if c is not None]
    for start, block in table.blocks(wanted):
        names = table.strings(block, config.sequence)
        if None in names:
            raise data_error(table.path, f"row {start + names.index(None) + 1}, column {config.sequence!r}",
                             "must name a sequence", None)
        codes.append(np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64))
        if config.time is not None:
            times.append(_times(table, block, config.time, start))
        labels += table.strings(block, config.label) if config.label else []
        groups += table.strings(block, config.group) if config.group else []
    code = np.concatenate(codes)
    time = np.concatenate(times) if times else None
    order = np.argsort(code, kind="stable") if time is None else np.lexsort((time, code))
    if time is not None:
        _check_times(table, config, list(number), code[order], time[order])
    ends = np.cumsum(np.bincount(code, minlength=len(number)))
    starts = np.concatenate([[0], ends[:-1]])
    place = None
    if not np.array_equal(order, np.arange(len(order))):
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
    known = list(number)
    label = np.array(labels, dtype=object)[order] if config.label else None
    if label is not None and not config.per_step:
        label = _one_each(table, known, config.label, label, starts, ends, " or say data.per_step=true")
    group = np.array(groups, dtype=object)[order] if config.group else None
    if group is not None:
        group = _one_each(table, known, config.group, group, starts, ends, "")
    return Order(len(code), known, starts, ends, label, group, place)


def _times(table: Table, block: Any, name: str, start: int) -> np.ndarray:
    import pyarrow

    column = block.column(name)
    if pyarrow.types.is_temporal(column.type):
        column = column.cast(pyarrow.int32() if column.type.bit_width == 32 else pyarrow.int64())
    times = column.to_numpy(zero_copy_only=False)
    if times.dtype.kind not in "iuf":
        raise data_error(table.path, f"column {name!r}", "must hold numbers or points in time", str(column.type))
    if column.null_count or (times.dtype.kind == "f" and np.isnan(times).any()):
        row = int(np.flatnonzero(np.isnan(times.astype(np.float64)))[0])
        raise data_error(table.path, f"row {start + row + 1}, column {name!r}", "must have a time", None)
    return times


def _check_times(table: Table, config: TableDataConfig, names: List[str], code: np.ndarray, time: np.ndarray) -> None:
    twice = np.flatnonzero((code[1:] == code[:-1]) & (time[1:] == time[:-1]))
    if len(twice):
        row = int(twice[0])
        raise data_error(table.path, f"sequence {names[code[row]]!r}, column {config.time!r}",
                         "must not have the same time twice", time[row].item())


def _one_each(table: Table, names: List[str], column: str, values: np.ndarray, starts: np.ndarray, ends: np.ndarray,
              hint: str) -> np.ndarray:
    first = values[starts]
    same = values == np.repeat(first, ends - starts)
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
        name = names[int(np.searchsorted(ends, row, side="right"))]
        raise data_error(table.path, f"sequence {name!r}, column {column!r}", "must be the same in all its rows",
                         values[row], "correct it" + hint)
    for name, value in zip(names, first):
        if value is None:
            raise data_error(table.path, f"sequence {name!r}, column {column!r}", "must have a value", None,
                             "give it one, or leave its rows out")
    return first

"""Text cells as numbers, booleans and points in time, under rules that are the same for every reader."""

import re
from datetime import date
from functools import lru_cache
from typing import Any, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

__all__ = [
    "DATES",
    "POINT",
    "REAL",
    "WHOLE",
    "ZONED",
    "Marks",
    "as_list",
    "holds",
    "is_missing",
    "is_number",
    "numbers",
    "show_time",
    "times",
]

#: Kinds of times: whole numbers, other numbers, dates on the clock of the place, dates in UTC.
WHOLE, REAL, DATES, ZONED = "whole numbers", "numbers", "dates without a time zone", "dates with a time zone"

_FLAGS = {"true": 1.0, "false": 0.0}
_DIGITS = r"(?:[0-9]+{p}?[0-9]*|{p}[0-9]+)(?:[eE][+-]?[0-9]+)?"
_WORDS = r"|[+-]?(?:nan|inf|infinity)"
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)? ?(Z|[+-]\d\d:?\d\d)?",
                  re.ASCII)


class Marks(NamedTuple):
    """How numbers are written.

    Attributes:
        decimal: before the fraction.
        thousands: between groups of three digits; "" for none.
        missing: texts that stand for an empty cell.
    """

    decimal: str = "."
    thousands: str = ""
    missing: FrozenSet[str] = frozenset()


POINT = Marks()


def as_list(cells: Any) -> Sequence[str]:
    """Cells as text; those of pyarrow, too, in which an empty one is null."""
    return ["" if cell is None else cell for cell in cells.to_pylist()] if hasattr(cells, "to_pylist") else cells


def holds(cells: Any, text: str) -> bool:
    """Whether any of the cells contains a text."""
    if not hasattr(cells, "to_pylist"):
        return text in "".join(cells)
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring(cells, text)).as_py())


def is_missing(cell: Optional[str], marks: Marks = POINT) -> bool:
    """Whether a cell is empty."""
    return not cell or not cell.strip() or cell.strip() in marks.missing


def numbers(cells: Any, marks: Marks = POINT) -> Tuple[np.ndarray, Optional[int]]:
    """``[rows]`` float64, each the nearest to the text, NaN for an empty cell; and the place of the first cell that is
    not a number, or None. From such a cell on, the array is not defined.

    Example:
        >>> numbers(["1", "", "-2.5e3"])
        (array([ 1.0e+00,      nan, -2.5e+03]), None)
        >>> numbers(["1,5", "5 %"], Marks(","))[1]
        1
    """
    if hasattr(cells, "to_pylist"):
        quick = _cast(cells, "float64") if marks == POINT else None
        if quick is not None:
            return quick, None
        cells = as_list(cells)
    if marks == POINT:
        try:
            found = np.array([float(cell) if cell else np.nan for cell in cells], dtype=np.float64)
        except ValueError:
            pass
        else:
            if not any("_" in cell for cell in cells if cell):  # Python's own way to write 1_000
                return found, None
    values = np.full(len(cells), np.nan)
    rule = _rule(marks)
    for place, cell in enumerate(cells):
        if is_missing(cell, marks):
            continue
        text = cell.strip()
        if text.lower() in _FLAGS:
            values[place] = _FLAGS[text.lower()]
        elif rule.fullmatch(text) is None:
            return values, place
        else:
            text = text.replace(marks.thousands, "") if marks.thousands else text
            values[place] = float(text.replace(marks.decimal, "."))
    return values, None


def is_number(cell: str, marks: Marks = POINT) -> bool:
    """Whether a cell that is not empty is a number, or true or false."""
    text = cell.strip()
    return _rule(marks).fullmatch(text) is not None or text.lower() in _FLAGS


def _cast(cells: Any, kind: str) -> Optional[np.ndarray]:
    """Cells of pyarrow as numbers of a kind, if all of them are, and both readers read them alike."""
    import pyarrow as pa

    try:
        return np.array(cells.cast(kind).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid:
        return None


@lru_cache(maxsize=64)
def _rule(marks: Marks) -> "re.Pattern[str]":
    plain = _DIGITS.format(p=re.escape(marks.decimal))
    grouped = ""
    if marks.thousands:
        group, point = re.escape(marks.thousands), re.escape(marks.decimal)
        grouped = f"|[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?:{point}[0-9]*)?"
    return re.compile(f"[+-]?(?:{plain}{grouped}){_WORDS}", re.IGNORECASE)


def times(cells: Any, marks: Marks = POINT) -> Tuple[Any, str, Optional[int]]:
    """Points in time: ``(values, kind, place of the first cell that is not one)``.

    Whole numbers are int64 and exact, dates are int64 nanoseconds since 1970 (with a zone: in UTC), other numbers are
    float64. An empty cell is not a point in time.

    Example:
        >>> values, kind, wrong = times(["1970-01-01T01:00:01+01:00"])
        >>> values.tolist(), kind, wrong
        ([1000000000], 'dates with a time zone', None)
    """
    if hasattr(cells, "to_pylist"):
        if marks == POINT and not cells.null_count and not holds(cells, "x") and not holds(cells, "X"):
            quick = _cast(cells, "int64")
            if quick is not None:
                return quick, WHOLE, None
        cells = as_list(cells)
    for place, cell in enumerate(cells):
        if is_missing(cell, marks):
            return None, "", place
    texts = [cell.strip() for cell in cells if cell is not None]
    try:
        if not any("_" in text for text in texts):
            return np.array([int(text) for text in texts], dtype=np.int64), WHOLE, None
    except (ValueError, OverflowError):
        pass
    found, wrong = numbers(texts, marks)
    if wrong is None:
        unknown = np.flatnonzero(~np.isfinite(found))
        return found, REAL, int(unknown[0]) if len(unknown) else None
    kinds: List[str] = []
    points: List[int] = []
    for place, text in enumerate(texts):
        point = _point(text)
        if point is None or (kinds and point[1] != kinds[0]):
            return None, "", place
        points.append(point[0])
        kinds.append(point[1])
    return np.array(points, dtype=np.int64), kinds[0], None


def _point(text: str) -> Optional[Tuple[int, str]]:
    """Nanoseconds since 1970 and the kind of a date in ISO 8601; None if it is not one."""
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    try:
        days = date(year, month, day).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None
    if hour > 23 or minute > 59 or second > 59:
        return None
    seconds, zone = ((days * 24 + hour) * 60 + minute) * 60 + second, match.group(8)
    if zone not in (None, "Z"):
        away = int(zone[1:3]) * 3600 + int(zone[-2:]) * 60
        seconds -= away if zone[0] == "+" else -away
    found = seconds * 10**9 + int((match.group(7) or "").ljust(9, "0"))
    return (found, DATES if zone is None else ZONED) if abs(found) < 2**63 else None


def show_time(value: Any, kind: str) -> Any:
    """A time as people write it.

    Example:
        >>> show_time(1500000000, DATES), show_time(7, WHOLE)
        ('1970-01-01T00:00:01.5', 7)
    """
    if kind not in (DATES, ZONED):
        return value.item() if hasattr(value, "item") else value
    text = str(np.datetime64(int(value), "ns"))
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text + ("Z" if kind == ZONED else "")

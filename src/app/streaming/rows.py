"""From lines to checked rows, each a session and its features; other lines are reported and skipped."""

import csv
import json
import math
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from app.errors import RunError
from app.streaming.lines import LONGEST, Line
from encoders.errors import InputError
from encoders.schema import InputSchema

__all__ = ["Reader", "Rows", "csv_reader", "header_features", "json_reader", "looks_like_header"]

LONGEST_NAME = 1000


class Rows(NamedTuple):
    """Rows that were read together, in the order of the input.

    Attributes:
        lines: ``[n]`` int64, the number of each row's line in the input.
        sessions: n names.
        features: ``[n, input_size]`` float64, finite in 32 bits; NaN where a value may be missing and is.
    """

    lines: np.ndarray
    sessions: List[str]
    features: np.ndarray


class _Malformed(ValueError):
    """The reason why a line is not a row."""


class Reader:
    """Turns lines into rows.

    Args:
        parse: from the text of a line to its session and its list of features; raises ValueError if it has none.
        input_size: number of features of a row.
        complain: called with the number of a malformed line and the reason.
        missing: whether values may be missing: null or NaN in JSON, an empty cell or ``nan`` in CSV.

    Attributes:
        malformed: number of lines that were skipped.
    """

    def __init__(self, parse: Callable[[str], Tuple[Any, Any]], input_size: int,
                 complain: Callable[[int, str], None], missing: bool = False) -> None:
        self._parse, self._size, self._complain, self._missing = parse, input_size, complain, missing
        self._kinds = _NUMBERS | {type(None)} if missing else _NUMBERS
        self.malformed = 0

    def __call__(self, lines: Sequence[Line], first: int) -> Rows:
        """Rows of lines.

        Args:
            lines: in order; empty ones are skipped.
            first: number of the first line.
        """
        numbers: List[int] = []
        sessions: List[str] = []
        features: List[Any] = []
        for number, line in enumerate(lines, first):
            data = line.data
            if data is not None and not data.strip():
                continue
            try:
                session, values = self._row(data)
            except _Malformed as problem:
                self._refuse(number, str(problem))
                continue
            numbers.append(number)
            sessions.append(session)
            features.append(values)
        wide = np.array(features, dtype=np.float64).reshape(len(features), self._size)
        lines_of = np.array(numbers, dtype=np.int64)
        fine = np.abs(wide) <= _LARGEST
        if self._missing:
            fine |= np.isnan(wide)
        good = np.asarray(fine.all(axis=1))
        if good.all():
            return Rows(lines_of, sessions, wide)
        for i in np.flatnonzero(~good).tolist():
            worst = wide[i][~fine[i]][0]
            hint = _MISSING_HINT if np.isnan(worst) else ""
            self._refuse(numbers[i], f"features must be finite 32-bit numbers; got {worst}{hint}")
        return Rows(lines_of[good], [name for name, kept in zip(sessions, good) if kept], wide[good])

    def _row(self, data: Optional[bytes]) -> Tuple[str, List[Any]]:
        if data is None:
            raise _Malformed(f"a line must have at most {LONGEST} bytes; got a longer one")
        try:
            text = data.decode("utf-8")
            session, values = self._parse(text[1:] if text.startswith("\ufeff") else text)
        except _Malformed:
            raise
        except UnicodeDecodeError:
            raise _Malformed("a line must be UTF-8 text; got other bytes") from None
        except (ValueError, RecursionError, csv.Error) as problem:
            raise _Malformed(str(problem)) from None
        if type(session) is int:
            session = str(session)
        if type(session) is not str or not session or len(session) > LONGEST_NAME:
            raise _Malformed(f"the session must be text of 1 to {LONGEST_NAME} characters, or an integer; "
                             f"got {_short(session)}")
        if not session.isascii():
            _check_text(session)
        if type(values) is not list or len(values) != self._size:
            got = f"{len(values)}" if type(values) is list else _short(values)
            raise _Malformed(f"features must be {self._size} numbers; got {got}")
        if not self._kinds.issuperset(map(type, values)):
            odd = next(value for value in values if type(value) not in self._kinds)
            raise _Malformed(f"features must be numbers; got {_short(odd)}{_MISSING_HINT if odd is None else ''}")
        if None in values:
            values = [math.nan if value is None else value for value in values]
        if int in map(type, values):
            values = [_float(value) for value in values]
        return session, values

    def _refuse(self, number: int, reason: str) -> None:
        self.malformed += 1
        self._complain(number, reason)


_NUMBERS = frozenset((int, float))
_LARGEST = float(np.finfo(np.float32).max)
_MISSING_HINT = "; a run trained with data.missing=mean or data.missing=forward takes missing values"


def json_reader(session: str, features: Optional[Sequence[str]], schema: Optional[InputSchema] = None,
                ignore: Sequence[str] = ()) -> Callable[[str], Tuple[Any, Any]]:
    """The parser of JSON lines.

    Args:
        session: key of the session.
        features: keys of the features; None: one key, ``features``, with a list or an object of features by name; or,
            if the run's features have names, these as keys of the line.
        schema: the schema of the run.
        ignore: keys to skip, in an object of features by name.
    """
    named = schema if schema is not None and schema.named else None
    known = named.others.union(ignore, named.names, [session]) if named is not None else frozenset()
    decode = json.JSONDecoder().raw_decode
    wanted = [session, *(features or ["features"])]

    def parse(text: str) -> Tuple[Any, Any]:
        text = text.strip()
        try:
            value, end = decode(text)
        except json.JSONDecodeError as problem:
            hint = "" if text.startswith("{") else (
                f"; a line must be a JSON object, or the first of all a CSV header with the column {session!r} "
                "(job.session names another)")
            raise _Malformed(f"{problem}{hint}") from None
        if end != len(text):
            raise _Malformed(f"a line must be one JSON object; got more after character {end}")
        if type(value) is not dict:
            raise _Malformed(f"a line must be a JSON object; got {_short(value)}")
        flat = features is None and named is not None and "features" not in value
        for key in [session] if flat else wanted:
            if key not in value:
                raise _Malformed(f"the object must have {key!r}; got {_short(list(value))}")
        if features is not None:
            return value[session], [value[key] for key in features]
        given = value if flat else value["features"]
        return value[session], by_name(given) if type(given) is dict and named is not None else given

    def by_name(given: Any) -> List[Any]:
        for key in named.names if named is not None else ():
            if key not in given:
                raise _Malformed(f"the object must have the run's feature {key!r}; got {_short(list(given))}")
        if not known.issuperset(given):
            odd = next(key for key in given if key not in known)
            raise _Malformed(f"the object must have no keys but the session and the run's features; got {_short(odd)}; "
                             "skip it with job.ignore")
        return [given[key] for key in named.names] if named is not None else []

    return parse


def csv_reader(header: str, session: str, features: Optional[Sequence[str]],
               input_size: int, missing: bool = False) -> Callable[[str], Tuple[Any, Any]]:
    """The parser of CSV lines, made from the header; with ``missing``, an empty cell is a missing value.

    Raises:
        RunError: a column is missing or twice, or there are not ``input_size`` columns of features.
    """
    names = [name.strip() for name in _cells(header)]
    for name in [session, *(features or ())]:
        if names.count(name) != 1:
            raise RunError(f"job.input must have one column {name!r} in its CSV header; got {names}; set job.session "
                           "and job.features, or job.format=jsonl")
    place = names.index(session)
    chosen = [names.index(name) for name in features] if features else [i for i in range(len(names)) if i != place]
    if len(chosen) != input_size:
        raise RunError(f"job.input must have {input_size} columns of features, as the encoder reads; got "
                       f"{len(chosen)}: {[names[i] for i in chosen]}; choose them with job.features")

    def parse(text: str) -> Tuple[Any, Any]:
        cells = _cells(text)
        if len(cells) != len(names):
            raise _Malformed(f"a line must have {len(names)} columns, as the header; got {len(cells)}")
        return cells[place].strip(), [_number(cells[i], missing) for i in chosen]

    return parse


def header_features(header: str, session: str, schema: Optional[InputSchema], ignore: Sequence[str]) -> List[str]:
    """The run's columns in its order, after a check that a CSV header has all of them and no others.

    Raises:
        RunError: it has not.
    """
    names = [name.strip() for name in _cells(header)]
    rest = [name for name in names if name != session]
    if schema is None or not schema.named:
        return [name for name in rest if name not in ignore]
    try:
        return [rest[place] for place in schema.match(rest, "job.input", ignore, "job.ignore")]
    except InputError as problem:
        raise RunError(f"{problem}; or choose the columns, in the run's order, with job.features") from None


def looks_like_header(text: str, session: str) -> bool:
    """Whether the first line is a CSV header with that column, and not JSON."""
    if text.lstrip().startswith("{"):
        return False
    try:
        return session in [name.strip() for name in _cells(text)]
    except csv.Error:
        return False


def _cells(text: str) -> List[str]:
    if '"' not in text:
        return text.split(",")
    return next(csv.reader([text], strict=True))


def _number(cell: str, missing: bool) -> float:
    if missing and not cell.strip():
        return math.nan
    try:
        if "_" in cell:  # float() accepts 1_000, which other programs do not
            raise ValueError
        return float(cell)
    except ValueError:
        hint = "" if cell.strip() else _MISSING_HINT
        raise _Malformed(f"features must be numbers; got {_short(cell)}{hint}") from None


def _check_text(session: str) -> None:
    try:
        session.encode("utf-8")
    except UnicodeEncodeError:  # JSON can escape a lone surrogate
        raise _Malformed(f"the session must be whole Unicode characters; got {_short(session)}") from None


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Malformed(f"features must be finite 32-bit numbers; got {_short(value)}") from None


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."

"""One file of text with separators: its encoding, its separator, its header, and its rows as text."""

import csv
import gzip
import io
import itertools
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE, getincrementaldecoder
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence, Tuple

from app.data.tables.cells import numbers
from app.data.tables.quick import Unread, has_pyarrow, quick_rows
from app.errors import DataError, data_error
from cfg.data import TableDataConfig
from cfg.validation import config_error

__all__ = ["Delimited"]

_PIECE = 1 << 20
_GUESSES = 50  # number of lines by which the separator is found
_BROKEN = (OSError, EOFError, zlib.error, UnicodeError, csv.Error)


class Delimited:
    """A file whose header has been read.

    Args:
        path: of the file.
        config: settings that replace detection.
        named: columns that must exist; they help to find the separator.

    Attributes:
        names: of the columns.
        encoding, separator: as given or as detected.

    Raises:
        DataError: it is empty, is not text, has no header, or two columns have the same name.
    """

    def __init__(self, path: Path, config: TableDataConfig, named: Sequence[str] = ()) -> None:
        self.path, self.who = path, str(path)
        if not path.stat().st_size:
            raise data_error(self.who, "file", "must have a header and rows", "0 bytes")
        self.encoding, self._plain = (config.encoding, False) if config.encoding else _find_encoding(path)
        self._skip = 0
        try:
            with self._open() as file:
                first_line = next(iter(file), "")
                rest = (line for line in file if line.strip())
                lines = list(itertools.islice(itertools.chain([first_line] * bool(first_line.strip()), rest), _GUESSES))
        except LookupError:
            raise config_error("data.encoding", "must be an encoding that Python knows", config.encoding) from None
        except _BROKEN as problem:
            raise self._unreadable(problem) from None
        if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:  # a spreadsheet's own line
            self._skip, lines = 1, lines[1:]
        if not lines:
            raise data_error(self.who, "file", "must have a header and rows", "only empty lines")
        self.separator = config.separator_mark or _find_separator(lines, named)
        named_packed = path.name.lower().endswith(".gz")  # which is what pyarrow goes by
        self._plain = (self._plain and self.separator != " " and lines[0] == first_line
                       and _is_packed(path) == named_packed)
        try:
            rows = _rows_of(lines, self._how())
        except csv.Error as problem:
            raise self._unreadable(problem) from None
        first = [cell.strip() for cell in rows[0]]
        headless = config.header is False
        self.names = [str(i) for i in range(1, len(first) + 1)] if headless else first
        self._headless = headless
        if config.header is None and _is_row(first, rows[1:], named):
            raise data_error(self.who, "first line", "must name the columns", first[:5],
                             "write a line of names above it, or set data.header=false: the columns are then 1, 2, 3, "
                             "...; if these are names, set data.header=true")
        twice = [name for name in self.names if name and self.names.count(name) > 1]
        if twice:
            places = [str(i + 1) for i, name in enumerate(self.names) if name == twice[0]]
            raise data_error(self.who, "columns", "must have different names", twice[0],
                             f"it is that of columns {' and '.join(places)}")

    def blocks(self, size: int, places: Optional[Sequence[int]] = None) -> Iterator[Tuple[int, List[Any]]]:
        """``(rows before, columns)`` of text, ``size`` rows at a time.

        Args:
            size: most rows of a block.
            places: numbers of the columns to read; None: all.

        Raises:
            DataError: a row has another number of cells, or the file is damaged.
        """
        places = range(len(self.names)) if places is None else places
        done = 0
        if self._plain and has_pyarrow():
            try:
                skip = 0 if self._headless else 1
                for columns in quick_rows(self.path, self.separator, len(self.names), skip, places, size):
                    yield done, columns
                    done += len(columns[0])
                return
            except Unread:
                pass
        for row, columns in self._rows(size):
            if row + len(columns[0]) > done:  # the rows that pyarrow has not read
                yield max(row, done), [columns[place][max(done - row, 0) :] for place in places]

    def _rows(self, size: int) -> Iterator[Tuple[int, List[Tuple[str, ...]]]]:
        """The same, all columns, by Python alone."""
        width, done = len(self.names), 0
        try:
            with self._open() as file:
                rows = csv.reader(self._lines(file), **self._how())
                if not self._headless:
                    next((row for row in rows if row), None)
                while True:
                    block = list(itertools.islice(rows, size))
                    if not block:
                        return
                    if not all(block):  # empty lines
                        block = [row for row in block if row]
                        if not block:
                            continue
                    if len(set(map(len, block))) > 1 or len(block[0]) != width:
                        place = next(i for i, row in enumerate(block) if len(row) != width)
                        raise data_error(self.who, f"row {done + place + 1}", f"must have {width} cells, as the header "
                                         "has", len(block[place]), "correct it, or set data.separator, which is taken "
                                         f"to be {self.separator!r}")
                    yield done, list(zip(*block))
                    done += len(block)
        except _BROKEN as problem:
            raise self._unreadable(problem) from None

    def _lines(self, file: Any) -> Iterator[str]:
        lines = (line.strip(" \r\n") + "\n" for line in file) if self.separator == " " else iter(file)
        return itertools.islice(lines, self._skip, None)

    def _how(self) -> Dict[str, Any]:
        return {"delimiter": self.separator, "skipinitialspace": self.separator == " ", "strict": True}

    def _open(self) -> IO[str]:
        return io.TextIOWrapper(_bytes(self.path), encoding=self.encoding, newline="")

    def _unreadable(self, problem: Exception) -> DataError:
        hint = "; set data.encoding" if isinstance(problem, UnicodeError) else ""
        return DataError(f"{self.who}: cannot be read as csv: {problem}{hint}")


def _is_packed(path: Path) -> bool:
    """Whether it is compressed by gzip, for any name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _bytes(path: Path) -> IO[bytes]:
    if _is_packed(path):
        return io.BufferedReader(gzip.GzipFile(path, "rb"))
    return open(path, "rb")


def _find_encoding(path: Path) -> Tuple[str, bool]:
    """The encoding by the byte order mark, or the first that fits all bytes of UTF-8, Windows-1252 and Latin-1; and
    whether it is UTF-8 without quotes and unusual line ends."""
    try:
        with _bytes(path) as file:
            start = file.read(4)
        if start == b"PAR1":
            raise data_error(str(path), "file", "must be text", "a Parquet file", "name it .parquet")
        if start[:2] == b"PK":
            raise data_error(str(path), "file", "must be text", "a zip archive, as workbooks of Excel are",
                             "unpack it, or save the sheet as CSV")
        if start in (BOM_UTF32_LE, BOM_UTF32_BE):
            return "utf-32", False
        if start[:2] in (BOM_UTF16_LE, BOM_UTF16_BE):
            return "utf-16", False
        for name in ("utf-8", "cp1252", "latin-1"):
            decodes, plain = _decodes(path, name)
            if decodes:
                break
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path}: cannot be read as csv: {problem}") from None
    if name != "utf-8":
        return name, False
    return "utf-8-sig" if start[:3] == BOM_UTF8 else name, plain


def _decodes(path: Path, encoding: str) -> Tuple[bool, bool]:
    decoder, plain = getincrementaldecoder(encoding)(), True
    with _bytes(path) as file:
        try:
            for piece in iter(lambda: file.read(_PIECE), b""):
                if b"\0" in piece:
                    raise data_error(str(path), "file", "must be text", "a byte of zero",
                                     "set data.encoding=utf-16-le if it is UTF-16 without a byte order mark")
                plain = plain and b'"' not in piece and piece.count(b"\r") == piece.count(b"\r\n")
                decoder.decode(piece)
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            return False, False
    return True, plain


def _find_separator(lines: List[str], named: Sequence[str]) -> str:
    """The separator with which the header has the columns that must exist, and all rows have as many cells as the
    header."""
    best: Tuple[Any, str] = ((False, False, 0), ",")
    for mark in (",", ";", "\t", "|", " "):
        texts = [line.strip(" \r\n") for line in lines] if mark == " " else lines
        try:
            rows = [row for row in csv.reader(texts, delimiter=mark, skipinitialspace=mark == " ") if row]
        except csv.Error:
            continue
        whole = rows[: len(rows) - 1] if len(lines) == _GUESSES else rows  # the last one may continue after these lines
        width, names = len(rows[0]), [cell.strip() for cell in rows[0]]
        fits = width > 1 and all(len(row) == width for row in whole)
        known = bool(named) and all(name in names for name in named)
        score = (known and width > 1, fits, width if fits and mark != " " else 0)
        if score > best[0]:
            best = (score, mark)
    return best[1]


def _rows_of(lines: List[str], how: Dict[str, Any]) -> List[List[str]]:
    """The rows in some lines, the last one perhaps incomplete; an error if the first line is not a row."""
    rows: List[List[str]] = []
    try:
        rows.extend(csv.reader(lines, **how))
    except csv.Error:  # a quoted cell may continue after these lines; other errors are reported when the rows are read
        if not rows:
            raise
    return rows


def _is_row(first: List[str], rows: List[List[str]], named: Sequence[str]) -> bool:
    """Whether the first line has values instead of names: numbers that do not count columns (0, 1, 2, ...; or 400.5,
    401.0, ...), or, together with numbers, a text that occurs again in its column."""
    if named and all(name in first for name in named):
        return False
    read = [numbers([cell]) for cell in first]
    found = [float(values[0]) for values, wrong in read if wrong is None]
    found = [value for value in found if value == value]
    if not found:
        return False
    below = {(place, cell.strip()) for row in rows for place, cell in enumerate(row)}
    if any((place, cell) in below for place, (cell, (_, wrong)) in enumerate(zip(first, read)) if wrong is not None):
        return True
    steps = [b - a for a, b in zip(found, found[1:])]
    steady = bool(steps) and steps[0] > 0 and all(abs(step - steps[0]) <= 1e-6 * abs(steps[0]) for step in steps)
    if len(found) == 2:
        return found not in ([0, 1], [1, 2])
    return not steady and not (len(found) >= 8 and all(step > 0 for step in steps))

"""Some rows of a table, column by column, the same for every file format."""

from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from app.data.tables.cells import as_list, is_missing, numbers, times
from app.data.tables.facts import Fact
from app.errors import DataError, data_error

__all__ = ["Block", "TextBlock", "clean"]


def clean(cells: Sequence[Optional[str]], missing: Any = frozenset()) -> List[Optional[str]]:
    """Names and labels without spaces around them; None if empty. ``nan`` is a missing number."""
    found = [None if cell is None else cell.strip() for cell in cells]
    return [None if not cell or cell in missing or (len(cell) == 3 and cell.lower() == "nan") else cell
            for cell in found]


class Block:
    """Rows of one file.

    Args:
        file: the file as errors name it; name: its name below the path of the table. row: number of the first row in
            its file, from 0; first: its number in the table. rows: number of rows.
    """

    def __init__(self, file: str, name: str, row: int, first: int, rows: int) -> None:
        self.file, self.name, self.row, self.first, self.rows = file, name, row, first, rows

    def error(self, place: int, column: str, rule: str, got: Any, hint: str = "") -> DataError:
        """The position of a cell, ``place`` rows after the first, for errors."""
        return data_error(self.file, f"row {self.row + place + 1}, column {column!r}", rule, got, hint)

    def numbers(self, name: str) -> np.ndarray:
        """``[rows]`` float64, NaN where it is empty."""
        raise NotImplementedError

    def texts(self, name: str) -> List[Optional[str]]:
        """``[rows]`` texts, cleaned by `clean`."""
        raise NotImplementedError

    def times(self, name: str) -> Tuple[np.ndarray, str]:
        """``[rows]`` int64 or float64, and the kind; see `app.data.tables.cells.times`."""
        raise NotImplementedError

    def lists(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """``(sizes [rows] int64, the numbers of all lists in one array)``."""
        raise NotImplementedError

    def text_lists(self, name: str) -> Tuple[np.ndarray, List[Optional[str]]]:
        """The same as `lists`, for text."""
        raise NotImplementedError

    def cells_as_numbers(self, cells: Any, name: str, fact: Fact) -> np.ndarray:
        """Text that must be numbers."""
        values, wrong = numbers(cells, fact.marks)
        if wrong is not None:
            cell = as_list(cells)[wrong]
            raise self.error(wrong, name, "must hold numbers", cell, remedy(cell or ""))
        return values

    def cells_as_times(self, cells: Any, name: str, fact: Fact) -> Tuple[np.ndarray, str]:
        """Text that must be times."""
        values, kind, wrong = times(cells, fact.marks)
        if wrong is not None:
            cell = as_list(cells)[wrong]
            if is_missing(cell, fact.marks):
                raise self.error(wrong, name, "must have a time", None)
            raise self.error(wrong, name, "must hold numbers, or points in time of one kind", cell,
                             "write dates as 2024-01-31 12:00:00, all with a time zone (+01:00) or none")
        return values, kind


class TextBlock(Block):
    """Rows of a file of text.

    Args:
        cells: by column, text or pyarrow's.
        facts: of the columns.
    """

    def __init__(self, file: str, name: str, row: int, first: int, cells: Mapping[str, Any],
                 facts: Mapping[str, Fact]) -> None:
        super().__init__(file, name, row, first, len(next(iter(cells.values()))))
        self._cells, self._facts = cells, facts

    def numbers(self, name: str) -> np.ndarray:
        return self.cells_as_numbers(self._cells[name], name, self._facts[name])

    def texts(self, name: str) -> List[Optional[str]]:
        return clean(as_list(self._cells[name]), self._facts[name].marks.missing)

    def times(self, name: str) -> Tuple[np.ndarray, str]:
        return self.cells_as_times(self._cells[name], name, self._facts[name])

    def lists(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        raise self._no_lists(name)

    def text_lists(self, name: str) -> Tuple[np.ndarray, List[Optional[str]]]:
        raise self._no_lists(name)

    def _no_lists(self, name: str) -> DataError:
        return self.error(0, name, "must hold lists, one for each sequence", as_list(self._cells[name])[0],
                          "Parquet has them; or set data.sequence to the column that says which rows belong "
                          "together, or set data.layout=wide for one row a sequence and one column a step")


def remedy(cell: str) -> str:
    """The hint of the error for a cell that is not a number."""
    text = cell.strip()
    if text.endswith("%"):
        return "write it without the sign"
    if text in ("?", "-", "--", "*", "NA", "N/A", "n/a", "null", "None", "NULL", "na"):
        return f"leave the cell empty if it is missing, or set data.na_values=['{text}']"
    if "," in text and any(c.isdigit() for c in text):
        return "set data.decimal=comma, or data.thousands=comma"
    return "correct it, or leave the column out of data.features"

"""Determines what the columns of text files are, from all their cells."""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from app.data.tables.cells import Marks, as_list, holds, is_missing, is_number, numbers, times
from app.data.tables.facts import DATE, EMPTY, INDEX, NUMBER, ODD, TEXT, Fact, Odd
from cfg.data import TableDataConfig

__all__ = ["Tally", "decide"]

_SURE = 1000  # after this many cells without a number, a column is text


class _Count:
    """Counts the cells of a column that are numbers in one notation."""

    def __init__(self, marks: Marks) -> None:
        self.marks, self.good, self.bad = marks, 0, 0
        self.odd: Optional[Odd] = None
        self.shown = False  # whether a fraction shows that the mark does not separate thousands

    def add(self, cells: Any, file: str, start: int) -> None:
        if self.bad > _SURE and not self.good:
            return
        values, wrong = numbers(cells, self.marks)
        if wrong is None:
            self.good += len(cells) - int(np.isnan(values).sum())
        else:
            for place, cell in enumerate(as_list(cells)):
                if is_missing(cell, self.marks):
                    continue
                if is_number(cell, self.marks):
                    self.good += 1
                else:
                    self.bad += 1
                    self.odd = self.odd or Odd(file, start + place + 1, cell.strip())
                    if self.bad > _SURE and not self.good:
                        return
        if not self.shown and not self.bad:
            mark = self.marks.decimal
            self.shown = holds(cells, mark) and any(
                mark in cell and _is_fraction(cell, mark) for cell in as_list(cells))


def _is_fraction(cell: str, mark: str) -> bool:
    whole, _, rest = cell.strip().lstrip("+-").partition(mark)
    digits = rest.lower().partition("e")[0]
    return len(digits) != 3 or len(whole) > 3 or whole in ("", "0")


class Tally:
    """One column, cell by cell.

    Args:
        name: of the column; place: its number, from 0.
        config: settings that replace detection.
    """

    def __init__(self, name: str, place: int, config: TableDataConfig) -> None:
        self.name, self.place = name, place
        missing = frozenset(text.strip() for text in config.na_values)
        known = config.decimal_mark
        self.first: Optional[str] = None
        self.flags = 0
        self.ways = [_Count(Marks(mark, config.thousands_mark, missing)) for mark in ((known,) if known else (".", ","))
                     if mark != config.thousands_mark]

    def add(self, cells: Any, file: str, start: int) -> None:
        """Add cells of a file, from row ``start`` (from 0) on."""
        marks = self.ways[0].marks
        if self.first is None:
            self.first = next((cell.strip() for cell in as_list(cells) if not is_missing(cell, marks)), None)
        self.ways[0].add(cells, file, start)
        if len(self.ways) > 1:
            first, second = self.ways
            if first.bad or (not second.bad and not holds(cells, first.marks.decimal)):
                second.add(cells, file, start)
            else:  # these are numbers with the decimal point only
                second.bad += 1
        if self.ways[0].good and any(holds(cells, end) for end in ("ue", "UE", "se", "SE")):
            self.flags += sum(1 for cell in as_list(cells) if cell.strip().lower() in ("true", "false"))

    def fact(self, comma: bool, point: bool) -> Fact:
        """What the column is, if other columns show that the file has decimal commas or decimal points."""
        name, first = self.name, self.first
        if first is None:
            nameless = "" if name else f" (column {self.place + 1} has no name)"
            return Fact(name, EMPTY, "empty", f"empty{nameless}", self.ways[0].marks)
        if name == "" or (self.place == 0 and name == "Unnamed: 0"):
            why = "index of pandas" if self.place == 0 else f"column {self.place + 1} has no name"
            return Fact(name, INDEX, "text", why, self.ways[0].marks)
        whole = [way for way in self.ways if not way.bad]
        way = whole[0] if whole else max(self.ways, key=lambda way: way.good)
        if whole:
            if len(whole) == 1 and len(self.ways) == 2 and not way.shown:
                other = "point" if way.marks.decimal == "," else "comma"
                settled = (comma and not point) if way.marks.decimal == "," else not comma
                if not settled:
                    mine = "comma" if other == "point" else "point"
                    why = (f"numbers such as {first!r}, whose {mine} may separate thousands: set "
                           f"data.decimal={mine} or data.thousands={mine}")
                    return Fact(name, ODD, "text", why, way.marks)
            if not self.flags or self.flags == way.good:
                return Fact(name, NUMBER, "boolean" if self.flags else "number", "", way.marks)
            return Fact(name, ODD, "text", "numbers and true or false", way.marks)
        if not way.good or self.flags == way.good:
            if times([first])[2] is None:
                return Fact(name, DATE, "date", f"dates, such as {first!r}", way.marks, way.odd)
            return Fact(name, TEXT, "text", "text" if first.isidentifier() else f"text, such as {_short(first)!r}",
                        way.marks, way.odd)
        odd = (way.odd or Odd("", 0, ""))._replace(cells=way.bad)
        verb = "is not a number" if odd.cells == 1 else "are not numbers"
        why = (f"{odd.cells} of {way.good + way.bad} cells {verb}, the first {_short(odd.cell)!r} in {odd.file}, "
               f"row {odd.row}")
        return Fact(name, ODD, "text", why, way.marks, odd)


def decide(tallies: Sequence[Tally]) -> Dict[str, Fact]:
    """A fact for each column of files that belong together."""
    shown: Dict[str, Any] = {".": False, ",": False}
    for tally in tallies:
        whole: List[_Count] = [way for way in tally.ways if not way.bad and way.shown]
        if len(whole) == 1:
            shown[whole[0].marks.decimal] = True
    return {tally.name: tally.fact(shown[","], shown["."]) for tally in tallies}


def _short(cell: str) -> str:
    return cell if len(cell) <= 40 else cell[:37] + "..."

"""The model of a table's columns, the same for every file format."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set

from app.data.tables.cells import POINT, Marks

__all__ = ["DATE", "EMPTY", "FOLDER", "INDEX", "LISTS", "NUMBER", "ODD", "OTHER", "TEXT", "TEXTS", "Fact", "Odd",
           "merge"]

#: Kinds. ``ODD`` holds numbers and something else; ``LISTS`` lists of numbers, ``TEXTS`` lists of text; ``FOLDER``
#: stands in the names of folders.
NUMBER, TEXT, DATE, LISTS, TEXTS, ODD, EMPTY, INDEX, FOLDER, OTHER = (
    "number", "text", "date", "lists", "texts", "odd", "empty", "index", "folder", "other")


class Odd(NamedTuple):
    """A cell that is not a number.

    Attributes:
        file, row: its position; rows count from 1.
        cell: its content.
        cells: how many cells of the column are not numbers.
    """

    file: str
    row: int
    cell: str
    cells: int = 1


class Fact(NamedTuple):
    """A column.

    Attributes:
        name: as in the file.
        kind: one of the kinds of this module.
        type: its type as the file names it, e.g. ``int64``.
        why: the reason why it is not an input; "" for numbers and lists of numbers.
        marks: how its numbers are written, in text files.
        odd: the first cell that is not a number.
    """

    name: str
    kind: str
    type: str
    why: str = ""
    marks: Marks = POINT
    odd: Optional[Odd] = None


def merge(files: Sequence[str], found: Sequence[Dict[str, Fact]]) -> Dict[str, Fact]:
    """One fact for each column, from the facts of all files, in the order of first occurrence."""
    names: List[str] = list(dict.fromkeys(name for facts in found for name in facts))
    return {name: _merge(name, files, [facts.get(name) for facts in found]) for name in names}


def _merge(name: str, files: Sequence[str], facts: Sequence[Any]) -> Fact:
    first = next(fact for fact in facts if fact is not None)
    if any(fact is None for fact in facts):
        lacks = files[next(i for i, fact in enumerate(facts) if fact is None)]
        return first._replace(kind=OTHER, why=f"not in {lacks}")
    known = [(file, fact) for file, fact in zip(files, facts) if fact.kind != EMPTY]
    if not known:
        return first
    kinds: Set[str] = {fact.kind for _, fact in known}
    if len(kinds) == 1:
        odd = [fact for _, fact in known if fact.why]
        return odd[0] if odd else known[0][1]
    if INDEX in kinds:
        return next(fact for _, fact in known if fact.kind == INDEX)
    other = next((file, fact) for file, fact in known if fact.kind != known[0][1].kind)
    return first._replace(kind=ODD, why=f"{known[0][1].type} in {known[0][0]}, {other[1].type} in {other[0]}")

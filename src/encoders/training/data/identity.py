"""Identifies the sequence of each row of an output by the names in the data."""

from typing import Any, List, NamedTuple, Optional, Sequence

__all__ = ["Identity"]


class Identity(NamedTuple):
    """Numbers, names and files of sequences, in order.

    Attributes:
        numbers: number of each in its set, from 0.
        names: their names in the source, if there are any.
        files: their files, if they come from files.

    Example:
        >>> ids = Identity([0, 1], ["a", "b"], ["x.csv", "y.csv"])
        >>> ids.columns, ids.row(1)
        (['sequence', 'id', 'file'], [1, 'b', 'y.csv'])
    """

    numbers: Sequence[int]
    names: Optional[Sequence[str]] = None
    files: Optional[Sequence[str]] = None

    @property
    def columns(self) -> List[str]:
        """Names of a table's columns: ``sequence``, and ``id`` and ``file`` where they are known."""
        known = [("id", self.names), ("file", self.files)]
        return ["sequence", *(column for column, values in known if values is not None)]

    def row(self, place: int) -> List[Any]:
        """The values of `columns` for one sequence."""
        return [self.numbers[place], *(held[place] for held in (self.names, self.files) if held is not None)]

    def part(self, span: range) -> "Identity":
        """The identities of a span of sequences."""
        names, files = (None if held is None else held[span.start : span.stop] for held in (self.names, self.files))
        return Identity(self.numbers[span.start : span.stop], names, files)

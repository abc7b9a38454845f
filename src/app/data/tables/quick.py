"""The rows of plain text files, read by pyarrow if it is installed. Only for files without quotes, which all readers
split alike: the result is the same as that of `app.data.tables.delimited`, but faster."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator, List, Sequence

__all__ = ["Unread", "has_pyarrow", "quick_rows"]

_BYTES = 4 << 20  # parsed together


class Unread(Exception):
    """The file contains something that the other reader must read or report."""


def has_pyarrow() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def quick_rows(path: Path, separator: str, width: int, skip: int, places: Sequence[int], size: int
               ) -> Iterator[List[Any]]:
    """The columns at some places, ``size`` rows at a time, as arrays of text with null for an empty cell.

    Args:
        path: of a UTF-8 file without quotes, packed by gzip or not.
        separator: between cells.
        width: cells in a row.
        skip: lines before the rows.
        places: numbers of the columns to read.
        size: most rows of a block.

    Raises:
        Unread: at any row.
    """
    import pyarrow as pa
    import pyarrow.csv as csv

    names = [str(place) for place in range(width)]
    try:
        reader = csv.open_csv(
            str(path), csv.ReadOptions(use_threads=False, block_size=_BYTES, skip_rows=skip, column_names=names),
            csv.ParseOptions(delimiter=separator, quote_char=False),
            csv.ConvertOptions(column_types={name: pa.string() for name in names}, null_values=[""],
                               strings_can_be_null=True, include_columns=[names[place] for place in places]))
        for batch in reader:
            for at in range(0, batch.num_rows, size):
                part = batch.slice(at, size)
                yield [part.column(i) for i in range(len(places))]
    except (pa.ArrowException, OSError, UnicodeError) as problem:
        raise Unread(str(problem)) from None

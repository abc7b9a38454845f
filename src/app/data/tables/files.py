"""The files of a path."""

from pathlib import Path
from typing import List, Mapping, NamedTuple, Optional

from app.data.tables.folders import check_folders, folder_cells
from app.data.tables.natural import natural
from app.errors import data_error

__all__ = ["Found", "find_files", "kind_of"]

_KINDS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_ALONE = {**_KINDS, ".txt": "csv"}


class Found(NamedTuple):
    """One file.

    Attributes:
        path: its path.
        name: its name below the path that was given, or its own name; with ``/`` on every system.
        kind: ``csv`` or ``parquet``.
        cells: columns given by the names of its folders; see `app.data.tables.folders`.
    """

    path: Path
    name: str
    kind: str
    cells: Mapping[str, str] = {}


def kind_of(path: Path, alone: bool = False) -> Optional[str]:
    """``csv`` (packed by gzip or not) or ``parquet``, by the name; None for others.

    Args:
        path: of a file.
        alone: whether it was named itself and not found in a folder: then a ``.txt`` file may be a table.
    """
    name = path.name.lower()
    packed = name.endswith(".gz")
    found = (_ALONE if alone else _KINDS).get(Path(name[:-3] if packed else name).suffix)
    return None if packed and found == "parquet" else found


def find_files(path: str) -> List[Found]:
    """The file, or the tables below a folder in natural order. Names that begin with ``.`` or ``_`` are skipped,
    as are all files below such folders.

    Raises:
        DataError: there are no files, or files of several kinds, or one is not a regular file.
    """
    place = Path(path)
    if not place.exists():
        raise data_error("data", "path", "must be an existing CSV or Parquet file, or a folder of them", path)
    if place.is_file():
        kind = kind_of(place, alone=True)
        if kind is None:
            raise data_error(path, "file", "must be CSV or Parquet, by its name", place.suffix or place.name,
                             "data=table reads .csv, .tsv, .txt (packed by gzip too: .csv.gz) and .parquet")
        return [Found(place, place.name, kind)]
    found = []
    for file in place.rglob("*"):
        inside = file.relative_to(place)
        kind = kind_of(file)
        if kind is not None and not file.is_dir() and not any(part.startswith((".", "_")) for part in inside.parts):
            if not file.is_file():
                raise data_error(str(file), "file", "must be there", "a broken link, or not a regular file")
            found.append(Found(file, inside.as_posix(), kind, folder_cells(inside)))
    kinds = {file.kind for file in found}
    if len(kinds) != 1:
        ends = ", ".join(sorted({file.path.suffix for file in found}))
        raise data_error(path, "files", "must all be .csv or all be .parquet", ends or "an empty folder")
    found.sort(key=lambda file: natural(file.name))
    check_folders(path, [file.name for file in found], [file.cells for file in found])
    return found

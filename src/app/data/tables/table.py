"""A table: one file or many of one kind, as named columns, block by block."""

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from app.data.tables.blocks import Block, TextBlock
from app.data.tables.delimited import Delimited
from app.data.tables.facts import Fact, merge
from app.data.tables.files import Found, find_files
from app.data.tables.folders import FolderBlock, folder_facts
from app.data.tables.parquet import ArrowBlock, ParquetFile
from app.data.tables.survey import Tally, decide
from app.errors import data_error
from cfg.data import TableDataConfig
from cfg.validation import config_error, nearest

__all__ = ["Table", "check_table", "column_names", "named_columns", "open_table"]

BLOCK = 1 << 16  # rows
KEPT = 16 << 20  # text of this size in bytes is parsed only once


def named_columns(config: TableDataConfig) -> List[Tuple[str, str]]:
    """``(setting, column)`` of all columns that a config names."""
    parts = [("sequence", config.sequence), ("time", config.time), ("label", config.label), ("group", config.group)]
    found = [(field, name) for field, name in parts if name is not None]
    return found + [("features", n) for n in config.features or ()] + [("targets", n) for n in config.targets or ()]


def column_names(path: str, config: TableDataConfig) -> List[str]:
    """The names of the columns, in the order of the (first) file; no rows are read, and of CSV no pyarrow is needed.

    Args:
        path: a file, or a folder of files.
        config: how CSV is written, where it is not detected.

    Raises:
        DataError: it is missing, empty or no table.
    """
    first = find_files(path)[0]
    return [*_open(first, config, []).names, *first.cells]


def open_table(path: str, config: TableDataConfig) -> "Table":
    """A file, or a folder of files, with its columns checked.

    Raises:
        DataError: it is missing, empty or no table, or pyarrow is not installed (Parquet).
        ConfigError: a setting names a column that it does not have.
    """
    files, opened = _open_all(path, config)
    table = Table(path, files, opened, config)
    if not table.rows:
        raise data_error(path, "rows", "must be at least one", 0)
    return table


def check_table(path: str, config: TableDataConfig) -> None:
    """Only the headers: what `open_table` refuses before it reads rows."""
    _open_all(path, config)


def _open_all(path: str, config: TableDataConfig) -> Tuple[List[Found], List[Any]]:
    files = find_files(path)
    named = [name for _, name in named_columns(config) if name not in files[0].cells]
    opened = [_open(file, config, named) for file in files]
    for found, file in zip(files, opened):
        _check_columns(found, file, config)
    return files, opened


def _open(found: Found, config: TableDataConfig, named: Sequence[str]) -> Union[Delimited, ParquetFile]:
    return ParquetFile(found.path) if found.kind == "parquet" else Delimited(found.path, config, named)


def _check_columns(found: Found, file: Any, config: TableDataConfig) -> None:
    both = [name for name in found.cells if name in file.names]
    if both:
        raise data_error(str(found.path), f"column {both[0]!r}", "must stand in the file or in the name of its folder, "
                         "not in both", f"{both[0]}={found.cells[both[0]]}", "rename the folders, or the column")
    columns = [*file.names, *found.cells]
    for field, name in named_columns(config):
        if name not in columns:
            known = [known for known in columns if known]
            hint = nearest(name, known) or "it has " + ", ".join(known[:20])
            raise config_error(f"data.{field}", f"must be a column of {found.path}", name, hint)


class Table:
    """Files of one kind.

    Args:
        path: as the user wrote it.
        files: where they are; opened: with their headers read.
        config: how text is written.

    Attributes:
        facts: what each column is, by name, judged by all rows of all files.
        counts: rows of each file.
        rows: of all files.
    """

    def __init__(self, path: str, files: Sequence[Found], opened: Sequence[Any], config: TableDataConfig) -> None:
        self.path, self.files, self._opened = path, list(files), list(opened)
        self._kept: Optional[List[List[Tuple[int, Dict[str, Any]]]]] = None
        if isinstance(opened[0], ParquetFile):
            self.counts = [file.rows for file in opened]
            self.facts = merge([found.name for found in files], [file.facts for file in opened])
        else:
            self.counts, self.facts = self._survey(config)
        self.facts.update(folder_facts([found.name for found in files], [found.cells for found in files], config))
        self.rows = sum(self.counts)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def notes(self) -> List[str]:
        """What was detected about text files and should be reported, one line each."""
        found = [f"{file.who} is not UTF-8 and was read as {file.encoding}; set data.encoding"
                 for file in self._opened if isinstance(file, Delimited) and file.encoding in ("cp1252", "latin-1")]
        comma = [name for name, fact in self.facts.items() if fact.kind == "number" and fact.marks.decimal == ","]
        if comma:
            found.append(f"{self.path}: the comma is before the fraction in {', '.join(comma[:8])}")
        return found

    def blocks(self, columns: Sequence[str], wanted: Optional[np.ndarray] = None) -> Iterator[Block]:
        """All rows, in order.

        Args:
            columns: to read.
            wanted: ``[rows]`` bool; row groups of Parquet without any of them are skipped. None: all.

        Raises:
            DataError: damage that shows only now.
        """
        columns = list(dict.fromkeys(columns))
        for number, (found, file) in enumerate(zip(self.files, self._opened)):
            own = [name for name in columns if name not in found.cells] or file.names[:1]
            for block in self._own(number, own, wanted):
                yield FolderBlock(block, found.cells, self.facts) if found.cells else block

    def file_of(self, row: int) -> Found:
        """The file of a row of the table."""
        return self.files[int(np.searchsorted(self.starts, row, side="right")) - 1]

    def _own(self, number: int, columns: Sequence[str], wanted: Optional[np.ndarray]) -> Iterator[Block]:
        """The rows of one file, without the columns of its folders."""
        found, file, first = self.files[number], self._opened[number], int(self.starts[number])
        if isinstance(file, ParquetFile):
            mine = None if wanted is None else wanted[first : first + self.counts[number]]
            for row, batch in file.blocks(columns, mine, BLOCK):
                yield ArrowBlock(file.who, found.name, row, first + row, batch, self.facts)
        else:
            for row, cells in self._text(number, columns):
                yield TextBlock(file.who, found.name, row, first + row, cells, self.facts)

    def _text(self, number: int, columns: Sequence[str]) -> Iterator[Tuple[int, Dict[str, Any]]]:
        if self._kept is not None:
            for row, cells in self._kept[number]:
                yield row, {name: cells[name] for name in columns}
            return
        file = self._opened[number]
        for row, found in file.blocks(BLOCK, [file.names.index(name) for name in columns]):
            yield row, dict(zip(columns, found))

    def _survey(self, config: TableDataConfig) -> Tuple[List[int], Dict[str, Fact]]:
        """One pass over all cells."""
        size = sum(file.path.stat().st_size * (8 if file.path.name.endswith(".gz") else 1) for file in self._opened)
        kept: List[List[Tuple[int, Dict[str, Any]]]] = []
        tallies: Dict[str, Tally] = {}
        counts: List[int] = []
        for found, file in zip(self.files, self._opened):
            blocks: List[Tuple[int, Dict[str, Any]]] = []
            count = 0
            for place, name in enumerate(file.names):
                tallies.setdefault(name, Tally(name, place, config))
            for row, cells in file.blocks(BLOCK):
                for name, column in zip(file.names, cells):
                    tallies[name].add(column, found.name, row)
                count = row + len(cells[0])
                if size <= KEPT:
                    blocks.append((row, dict(zip(file.names, cells))))
            counts.append(count)
            kept.append(blocks)
        facts = decide(list(tallies.values()))
        self._kept = kept if size <= KEPT else None
        names = [{name: facts[name] for name in file.names} for file in self._opened]
        return counts, merge([found.name for found in self.files], names)

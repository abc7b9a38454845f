"""Columns given by the names of folders, as Hive, Spark and pyarrow write them: ``subject=3/part-0.parquet``."""

from pathlib import PurePath
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import unquote

import numpy as np

from app.data.tables.blocks import Block, TextBlock
from app.data.tables.facts import FOLDER, Fact
from app.data.tables.survey import Tally, decide
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["FolderBlock", "check_folders", "folder_cells", "folder_facts"]

_NONE = "__HIVE_DEFAULT_PARTITION__"


def folder_cells(inside: PurePath) -> Dict[str, str]:
    """The cells of a file by column; "" for an empty one.

    Args:
        inside: path of the file below the folder of the table.

    Example:
        >>> folder_cells(PurePath("subject=3/day=2024-01-31/part-0.parquet"))
        {'subject': '3', 'day': '2024-01-31'}
    """
    pairs = [part.partition("=") for part in inside.parts[:-1]]
    return {unquote(name): "" if value == _NONE else unquote(value) for name, mark, value in pairs if name and mark}


def check_folders(path: str, names: Sequence[str], cells: Sequence[Mapping[str, str]]) -> None:
    """Refuse files if the folders of some name a column that the folders of others do not.

    Args:
        path: of the table.
        names: names of the files; cells: cells of each.

    Raises:
        DataError: the message names two files.
    """
    for name, mine in zip(names, cells):
        if set(mine) != set(cells[0]):
            both = [f"{', '.join(found) or 'none'} in {file}" for file, found in ((names[0], cells[0]), (name, mine))]
            raise data_error(path, "folders", "must name the same columns for all files (column=value)",
                             " and ".join(both), "put the files into folders of one kind")


def folder_facts(names: Sequence[str], cells: Sequence[Mapping[str, str]], config: TableDataConfig) -> Dict[str, Fact]:
    """The facts of these columns. They are inputs only if `data.features` names them.

    Args:
        names: of the files; cells: of each.
        config: how numbers are written.
    """
    found: Dict[str, Fact] = {}
    for name in cells[0] if cells else ():
        tally = Tally(name, 1, config)
        for file, mine in zip(names, cells):
            tally.add([mine[name]], file, 0)
        fact = decide([tally])[name]
        found[name] = fact._replace(kind=FOLDER, why="in the names of the folders")
    return found


class FolderBlock(Block):
    """Rows of a file, with the columns of its folders.

    Args:
        inner: the rows of the file. cells: the cells of the folders by column.
        facts: of the columns.
    """

    def __init__(self, inner: Block, cells: Mapping[str, str], facts: Mapping[str, Fact]) -> None:
        super().__init__(inner.file, inner.name, inner.row, inner.first, inner.rows)
        constant: Dict[str, Any] = {name: [cell] * inner.rows for name, cell in cells.items()}
        self._inner, self._names = inner, frozenset(cells)
        self._folders = TextBlock(inner.file, inner.name, inner.row, inner.first, constant, facts)

    def _of(self, name: str) -> Block:
        return self._folders if name in self._names else self._inner

    def numbers(self, name: str) -> np.ndarray:
        return self._of(name).numbers(name)

    def texts(self, name: str) -> List[Optional[str]]:
        return self._of(name).texts(name)

    def times(self, name: str) -> Tuple[np.ndarray, str]:
        return self._of(name).times(name)

    def lists(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        return self._of(name).lists(name)

    def text_lists(self, name: str) -> Tuple[np.ndarray, List[Optional[str]]]:
        return self._of(name).text_lists(name)

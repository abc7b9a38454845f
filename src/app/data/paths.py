"""Checks that the files that a config names exist and are regular files. Needs no torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

from app.errors import DataError
from cfg.validation import nearest

if TYPE_CHECKING:
    from cfg.data import DataConfig

__all__ = ["check_data_paths", "check_path"]

KEYS = ("train_path", "test_path", "tokenizer")


def check_data_paths(config: "DataConfig", missing: bool = False) -> None:
    """Check that every file or folder of a data config can be read without waiting.

    Args:
        config: the config of the data.
        missing: ignore missing files, which the reader will report.

    Raises:
        DataError: a file is missing, or it is, links to, or contains a pipe, a device or a socket.
    """
    for key in KEYS:
        path = getattr(config, key, None)
        if path is not None and not (missing and not os.path.lexists(path)):
            check_path(f"data.{key}", path)


def check_path(key: str, path: str) -> None:
    """Check one file or folder; ``key`` is the setting that names it."""
    place = Path(path)
    if place.is_dir():
        for entry in _entries(place):
            if (not entry.is_file() and not entry.is_symlink()) or (
                    entry.is_symlink() and _is_special(Path(entry.path))):
                raise DataError(f"{key} must hold regular files only; got {entry.path!r}; it is a pipe, a device or a "
                                "socket; take it out of the folder")
        return
    if not place.exists():
        hint = nearest(place.name, [entry.name for entry in os.scandir(place.parent)]) if place.parent.is_dir() else ""
        hint = hint or f"relative paths start from {os.getcwd()}"
        raise DataError(f"{key} must be an existing file or folder; got {path!r}; {hint}")
    if not place.is_file():
        raise DataError(f"{key} must be a regular file or a folder; got {path!r}; it is a pipe, a device or a socket; "
                        "save its content to a file first")


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """The files in a folder and its subfolders; hidden files are not read."""
    for root, names, _ in os.walk(str(folder)):
        names[:] = [name for name in names if not name.startswith((".", "_"))]
        with os.scandir(root) as entries:
            yield from (entry for entry in entries if not entry.name.startswith((".", "_")) and not entry.is_dir())


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()

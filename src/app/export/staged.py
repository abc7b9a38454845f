"""The files of an export: all of them, or none."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

__all__ = ["staged"]


@contextlib.contextmanager
def staged(folder: Path, last: str) -> Iterator[Path]:
    """Give a folder to write to; at the end, its files take their places in ``folder``.

    Each file is there completely or not at all, and ``last`` comes after the others: if it exists, all exist. After an
    error nothing is there; what a killed writer has left is removed by the next one.

    Args:
        folder: receives the files; made if it is missing.
        last: the name of one of them.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".export-*.tmp"):
        shutil.rmtree(str(old))
    place = Path(tempfile.mkdtemp(prefix=".export-", suffix=".tmp", dir=str(folder)))
    moved = []
    try:
        yield place
        paths = sorted(place.iterdir(), key=lambda path: (path.name == last, path.name))
        for path in paths:
            with open(str(path), "rb+") as file:
                os.fsync(file.fileno())
        for path in paths:
            moved.append(path.replace(folder / path.name))  # noqa: PERF401 - what has moved is known at every error
    except BaseException:
        for path in moved:
            path.unlink()
        raise
    finally:
        shutil.rmtree(str(place))

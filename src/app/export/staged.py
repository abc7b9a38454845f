"""Write all files of an export, or none."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

__all__ = ["staged"]


@contextlib.contextmanager
def staged(folder: Path, last: str) -> Iterator[Path]:
    """Provide a folder to write to; at the end, its files are moved to ``folder``.

    Each file exists completely or not at all, and ``last`` is moved after the others: if it exists, all exist. After an
    error there are no files; those of a killed process are removed by the next one.

    Args:
        folder: the folder for the files; it is made if it does not exist.
        last: the name of the file that is moved last.

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

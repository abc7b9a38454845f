"""Writes files completely or not at all. Needs no torch."""

import os
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

__all__ = ["replacing", "write_atomic"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Return a temporary name in the same folder; at the end this file replaces ``path``.

    Readers, also after a crash, see either the whole old file or the whole new one. After an error the old file is
    unchanged, and the temporary file is removed.

    Raises:
        OSError: the folder is missing, read-only or full.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with open(str(temporary), "rb+") as file:
            os.fsync(file.fileno())
        os.replace(str(temporary), str(path))
    except BaseException as problem:
        # The error of a full disk has no file name; one without a number would show only the file name.
        if isinstance(problem, OSError) and problem.errno is not None and problem.filename is None:
            problem.filename = str(path)
        if temporary.exists():
            temporary.unlink()
        raise
    if os.name != "nt":  # so that the rename survives a power cut; Windows cannot open a folder
        folder = os.open(str(path.parent), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file with `replacing`.

    Raises:
        OSError: the folder is missing, read-only or full; a file at ``path`` is unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x"
        >>> write_atomic(path, b"whole")
        >>> path.read_bytes()
        b'whole'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)

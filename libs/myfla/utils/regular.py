"""Opens only regular files, so that opening never blocks. Needs no torch."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Optional, Union

__all__ = ["check_regular", "open_regular", "read_regular"]

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
          (stat.S_ISSOCK, "a socket"))


def check_regular(path: Union[str, Path]) -> os.stat_result:
    """Check that a path, or the target of its link, is a regular file.

    Args:
        path: of the file.

    Returns:
        the result of ``os.stat``.

    Raises:
        OSError: it is missing, or a folder, a pipe, a device or a socket, which may block for ever.

    Example:
        >>> import tempfile
        >>> try:
        ...     check_regular(tempfile.mkdtemp())
        ... except OSError as problem:
        ...     print(problem.strerror)
        must be a regular file, not a folder
    """
    about = os.stat(str(path))
    _refuse_others(about, path)
    return about


def open_regular(path: Union[str, Path]) -> BinaryIO:
    """Open a regular file for reading; `check_regular` lists the errors.

    Args:
        path: of the file.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(delete=False) as file:
        ...     _ = file.write(b"text")
        >>> with open_regular(file.name) as file:
        ...     file.read()
        b'text'
    """
    check_regular(path)  # first, because opening a device may have an effect
    descriptor = os.open(str(path), os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _refuse_others(os.fstat(descriptor), path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Union[str, Path], limit: Optional[int] = None) -> bytes:
    """The content of a regular file; `check_regular` lists the errors.

    Args:
        path: of the file.
        limit: largest number of bytes; None for no limit.

    Raises:
        OSError: it cannot be read, or is larger.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x"
        >>> _ = path.write_bytes(b"much too long")
        >>> try:
        ...     read_regular(path, limit=4)
        ... except OSError as problem:
        ...     print(problem.strerror)
        must have at most 4 bytes, not 13
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is None:
            return file.read()
        data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"must have at most {limit} bytes, not {max(size, len(data))}", str(path))
        return data


def _refuse_others(about: os.stat_result, path: Union[str, Path]) -> None:
    if not stat.S_ISREG(about.st_mode):
        kind = next((name for fits, name in _KINDS if fits(about.st_mode)), "something else")
        raise OSError(errno.EINVAL, f"must be a regular file, not {kind}", str(path))

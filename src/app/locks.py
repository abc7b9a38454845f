"""One writer at a time: locks that the system releases when their process ends, for any reason."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

__all__ = ["FolderLock", "lock_file"]

NAME = ".lock"
_FAR = 1 << 40  # Windows locks bytes, which other processes then cannot read


def lock_file(file: Any) -> bool:
    """Lock an open file for this process alone; False if another has it. Closing the file releases it.

    Args:
        file: an open file, or its descriptor.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


class FolderLock:
    """The file ``.lock`` in a folder, held while this process, or a child that it forks, lives.

    Example:
        >>> import tempfile
        >>> first, second = (FolderLock(Path(folder)) for folder in [tempfile.mkdtemp()] * 2)
        >>> first.take(), second.take()
        (True, False)
        >>> first.leave()
        >>> second.take()
        True
        >>> second.leave()
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: Optional[Any] = None

    def take(self) -> bool:
        """Take the lock; False if another process has it.

        Raises:
            OSError: the folder cannot be written.
        """
        while True:
            file = open(str(self.path), "a+b")  # noqa: SIM115 - open as long as the lock is held
            if not lock_file(file):
                file.close()
                return False
            if _is_at(file, self.path):
                self._file = file
                return True
            file.close()  # the process that had it has removed it

    def leave(self) -> None:
        """Release the lock and remove the file."""
        if self._file is None:
            return
        if os.name != "nt":  # where an open file cannot be removed
            _remove(self.path)
        self._file.close()
        self._file = None
        if os.name == "nt":
            _remove(self.path)


def _is_at(file: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(str(path)))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):  # the folder is gone, or another process has the file
        path.unlink()


def _lock_on_windows(descriptor: int) -> bool:
    import msvcrt

    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)
    return True

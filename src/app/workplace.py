"""The folder of a run: locked by one process, and removed again if the start was refused. Needs no torch."""

import logging
import os
import shutil
from pathlib import Path
from typing import Optional

from app.errors import RunError
from app.locks import FolderLock
from app.made_folders import missing_folders, remove_folders
from app.run_folder import claim, relative

__all__ = ["Workplace"]

RECORD = ".hydra"
"""Hydra's record of a run; a start that was refused has only this and the log in its folder."""


class Workplace:
    """A run's folder while the run is at work.

    Args:
        folder: folder of the run; it is made if it does not exist.
        again: whether an existing run is resumed, so that its files may exist.

    Raises:
        RunError: another process uses the folder, it has results of another run, or it cannot be written.
    """

    def __init__(self, folder: Path, again: bool = False) -> None:
        self.folder = folder
        self._made = missing_folders(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._before = {entry.name for entry in folder.iterdir()}
            self._lock: Optional[FolderLock] = FolderLock(folder)
            taken = self._lock.take()
        except OSError as problem:
            remove_folders(self._made)
            raise RunError(f"hydra.run.dir must be a folder that can be written; got {str(folder)!r}: "
                           f"{problem.strerror}") from None
        if not taken:
            raise RunError(f"hydra.run.dir must be a folder in which no other run is at work; got "
                           f"{relative(folder)!r}; wait for that run to end, or use another folder")
        try:
            if not again:
                claim(folder)
        except RunError:
            self.leave()
            raise

    def leave(self) -> None:
        """The run has ended: release the folder, and remove it if it has only Hydra's record of the start.

        Calling it again changes nothing.
        """
        if self._lock is None:
            return
        if self.folder.is_dir():
            log = self._log()
            left = {entry.name for entry in self.folder.iterdir()} - self._before
            if left <= {RECORD, self._lock.path.name, *([log.name] if log is not None else [])}:
                _close_log(log)
                for name in left - {self._lock.path.name}:
                    path = self.folder / name
                    shutil.rmtree(str(path)) if path.is_dir() else path.unlink()
        self._lock.leave()
        self._lock = None
        remove_folders(self._made)

    def _log(self) -> Optional[Path]:
        """The log file that Hydra has opened in the folder."""
        for handler in logging.getLogger().handlers:
            path = Path(handler.baseFilename) if isinstance(handler, logging.FileHandler) else None
            if path is not None and path.parent == Path(os.path.abspath(str(self.folder))):
                return path
        return None


def _close_log(path: Optional[Path]) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if path is not None and isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == path:
            root.removeHandler(handler)
            handler.close()

"""Folders that a start creates, and removes again if it is refused."""

import os
from pathlib import Path
from typing import List, Sequence

__all__ = ["missing_folders", "remove_folders"]


def missing_folders(folder: Path) -> List[Path]:
    """The folders that have to be made for this one to be there, the innermost first."""
    found = []
    place = Path(os.path.abspath(str(folder)))
    while not place.exists():
        found.append(place)
        place = place.parent
    return found


def remove_folders(made: Sequence[Path]) -> None:
    """Remove folders as far as they are empty, in the order of `missing_folders`."""
    for folder in made:
        try:
            folder.rmdir()
        except OSError:  # it is not empty, or not there
            return

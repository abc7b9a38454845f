"""The parts of an output: which are missing, and which process makes them.

Part ``i`` has the sequences ``[i * size, (i + 1) * size)`` of the input, whichever process makes it. Parts from any
number of processes, and from before and after an interruption, therefore fit together. A part gets its name when it is
complete.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from app.errors import RunError
from app.run_folder import read_json, write_json

__all__ = ["DONE", "FACTS", "Place", "Plan", "file_facts", "find_place"]

FACTS, DONE = "encode.json", "done.json"
_EDGE = 1 << 20


class Place(NamedTuple):
    """This process among those that share the work."""

    rank: int
    world: int


def find_place(environment: Optional[Mapping[str, str]] = None) -> Place:
    """Rank and number of processes, as torchrun (``RANK``, ``WORLD_SIZE``) or SLURM set them; otherwise one process.

    Raises:
        RunError: only one of the two is set, or the rank does not exist.

    Example:
        >>> find_place({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"})
        Place(rank=1, world=4)
    """
    given = os.environ if environment is None else environment
    for names in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        rank, world = (given.get(name) for name in names)
        if rank is None and world is None:
            continue
        if rank is None or world is None or not (rank.isdigit() and world.isdigit()) or int(rank) >= int(world):
            raise RunError(f"{names[0]} and {names[1]} must be the number of this process and how many there are; "
                           f"got {names[0]}={rank}, {names[1]}={world}")
        return Place(int(rank), int(world))
    return Place(0, 1)


def file_facts(path: Path) -> Dict[str, Any]:
    """Identifies an input: its size and a digest of a megabyte at each end; for a folder, those of its files."""
    digest, size = hashlib.sha256(), 0
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        size += file.stat().st_size
        with open(file, "rb") as opened:
            digest.update(opened.read(_EDGE))
            opened.seek(max(0, file.stat().st_size - _EDGE))
            digest.update(opened.read(_EDGE))
    return {"bytes": size, "digest": digest.hexdigest()[:32]}


class Plan:
    """The output folder. Nothing is written to it before `begin`.

    Args:
        folder: a new folder, or the one of an earlier start with the same facts.
        facts: facts that must be the same for every process and every start, with ``sequences``, ``part_sequences``
            and ``format``.

    Raises:
        RunError: the folder has other contents, or cannot be read.
    """

    def __init__(self, folder: Path, facts: Dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self.count = -(-facts["sequences"] // facts["part_sequences"])
        try:
            path = folder / FACTS
            if path.exists():
                self._compare(read_json(path))
            elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()) \
                    and not path.exists():
                raise RunError(f"job.output must be a new folder or that of an earlier start; got {str(folder)!r}, "
                               f"which has files but no {FACTS}")
        except OSError as problem:
            raise self._unusable(problem) from None

    def begin(self) -> None:
        """Make the folder and write the facts, which are the same for all processes.

        Raises:
            RunError: it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.facts, self.folder / FACTS)
        except OSError as problem:
            raise self._unusable(problem) from None

    def _unusable(self, problem: Exception) -> RunError:
        return RunError(f"job.output must be a folder that can be written; got {str(self.folder)!r}: {problem}")

    def path(self, part: int) -> Path:
        """The path of a part."""
        return self.folder / f"part-{part:08d}.{self.facts['format']}"

    def missing(self, place: Place) -> List[int]:
        """The parts that a process still has to make."""
        return [part for part in range(place.rank, self.count, place.world) if not self.path(part).exists()]

    def needed(self, parts: Sequence[int]) -> np.ndarray:
        """``[sequences]`` bool: the sequences of some parts."""
        mask = np.zeros(self.facts["sequences"], bool)
        for part in parts:
            span = self.span(part)
            mask[span.start : span.stop] = True
        return mask

    def span(self, part: int) -> range:
        """The sequences of a part."""
        size = self.facts["part_sequences"]
        return range(part * size, min((part + 1) * size, self.facts["sequences"]))

    def finish(self) -> bool:
        """Whether all parts exist; then `DONE` is written."""
        if not all(self.path(part).exists() for part in range(self.count)):
            return False
        write_json({"sequences": self.facts["sequences"], "parts": self.count}, self.folder / DONE)
        return True

    def _compare(self, before: Dict[str, Any]) -> None:
        for key in {**before, **self.facts}:
            if before.get(key) != self.facts.get(key):
                raise RunError(f"job.output must be a new folder or that of an earlier start with the same settings; "
                               f"got {str(self.folder)!r}, where {key} was {before.get(key)!r} and is "
                               f"{self.facts.get(key)!r} now; choose another job.output")

"""The existing runs, for the error about one that does not exist. Needs no torch."""

from pathlib import Path
from typing import List

from app.errors import RunError
from app.run_folder import relative

__all__ = ["check_run", "known_runs"]

MOST = 5
PLACES = ("outputs/*/*/*", "outputs/*", "multirun/*/*/*/*", "*")
MARK = "encoder.json"


def known_runs(most: int = MOST) -> List[str]:
    """Folders of trained runs below the current one, the newest first."""
    found = {}
    for place in PLACES:
        for path in Path().glob(f"{place}/{MARK}"):
            found[path.parent] = path.stat().st_mtime
    return [relative(path) for path in sorted(found, key=lambda path: -found[path])[:most]]


def check_run(run: str) -> None:
    """Check that a folder exists and has a saved encoder.

    Raises:
        RunError: it does not; the message names the existing runs.
    """
    folder = Path(run)
    if folder.is_dir() and ((folder / MARK).exists() or (folder / "encoder.safetensors").exists()):
        return
    got = "has no encoder in it" if folder.is_dir() else "is not a folder"
    if (folder / "checkpoints").is_dir():
        got += f"; its training was interrupted: resume it with run={run} resume=true"
    others = known_runs()
    hint = f"trained runs here: {', '.join(others)}" if others else "there is no trained run here; train one first"
    raise RunError(f"run must be the folder of a finished run; got {run!r}, which {got}; {hint}")

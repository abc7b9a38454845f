"""The runs that exist, for the error about one that does not. Needs no torch."""

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
    """Make sure that a folder exists and holds a saved encoder.

    Raises:
        RunError: it does not; names the runs that exist.
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

"""The files that every run leaves: the composed config, results as JSON, the reason of a failure."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, TextIO, Tuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from app.errors import RunError
from cfg.validation import config_error
from encoders.training import CHECKPOINTS
from myfla.utils.atomic import replacing, write_atomic
from myfla.utils.regular import read_regular

__all__ = ["CHECKPOINTS", "FAILURE", "RESULTS", "check_shared", "claim", "in_sweep", "is_first_process", "overrides",
           "read_json", "refuse_overrides", "relative", "whole_file", "write_json"]

RESULTS = "metrics.json"
FAILURE = "failure.json"
_MARKS = (RESULTS, "metrics.csv", FAILURE, CHECKPOINTS)


def claim(folder: Path) -> None:
    """Check that ``folder`` has no results of another run.

    Raises:
        RunError: it has; the message names the file.
    """
    for name in _MARKS:
        if (folder / name).exists():
            raise RunError(f"hydra.run.dir must be a folder without another run's {name}; got {str(folder)!r}; "
                           "leave hydra.run.dir out to get a new folder, or resume an interrupted run: "
                           f"run={folder} resume=true")


def write_json(values: Dict[str, Any], path: Path) -> None:
    """Write one JSON object, indented; a number that is not finite becomes null, because JSON has no such numbers."""
    write_atomic(path, (json.dumps(_finite(values), indent=2, allow_nan=False) + "\n").encode("utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Dict[str, Any]:
    """Read a file of `write_json`.

    Raises:
        RunError: the file is missing or damaged, or holds something else.
    """
    try:
        values = json.loads(read_regular(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise RunError(f"{path} must be a readable file of JSON; {type(problem).__name__}: {problem}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} must hold one JSON object; got {type(values).__name__}; it is damaged or of another "
                       "kind")
    return values


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A text file to write to, which gets its name when it is complete; after an error it is removed."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        yield file


def is_first_process() -> bool:
    """True in the first process of a run on several processes, however they were started; false in the others."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def check_shared(processes: int) -> None:
    """Check that all processes of a run write to the same folder; by default each would name it by its own clock.

    Args:
        processes: number of processes of the run; if torchrun or Slurm has not started them, they will get the folder.

    Raises:
        ConfigError: they have been started and no folder was given.
    """
    started = [name for name in ("RANK", "SLURM_PROCID") if name in os.environ]
    if processes == 1 or not started or not HydraConfig.initialized():
        return
    if not any(override.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for override in
               HydraConfig.get().overrides.hydra):
        raise config_error("hydra.run.dir", f"must be given to {processes} processes that something else has started "
                           f"({started[0]} is set)", None, "hydra.run.dir=FOLDER, which all of them see")


def in_sweep() -> bool:
    """Whether this run is one job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def overrides() -> List[str]:
    """What the command line set, e.g. ``["encoder=rwkv7"]``; empty outside of Hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def refuse_overrides(job: str, keys: Tuple[str, ...]) -> None:
    """Refuse settings of the command line that come from the run.

    Raises:
        ConfigError: one was given.
    """
    for override in overrides():
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key.split(".", 1)[0] in keys:
            raise config_error(key, f"must be left out with job={job}", override, "they come from the run")


def relative(path: Path) -> str:
    """``path`` from the current folder if it lies below, else in full."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

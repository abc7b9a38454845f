"""A run's folder when training begins, and when it goes on after having been cut off."""

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

from app.data.sequences import SequenceData
from app.errors import RunError
from app.run_config import CONFIG, read_config
from app.run_folder import RESULTS, in_sweep, overrides, write_config, write_json
from app.training.fit import CHECKPOINTS
from cfg.app import AppConfig
from cfg.validation import config_error

__all__ = ["begin", "reopen"]

START = "start.json"


def begin(folder: Path, config: AppConfig, data: SequenceData, given: List[str]) -> None:
    """Write down what a restart must find unchanged; or check it, where this is a restart.

    Args:
        folder: of the run.
        config: with the encoder's sizes filled in.
        data: as it was read now.
        given: the command line's settings.

    Raises:
        RunError: the data are no longer what they were.
    """
    path = folder / CHECKPOINTS / START
    sizes = {"train": [len(data.train), data.train.tokens], **{name: [len(d), d.tokens] for name, d in data.tests}}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["data"]
        if before != sizes:
            raise RunError(f"run={str(folder)!r} must be gone on with on the same data; got [sequences, steps] "
                           f"{sizes}, before {before}; put the old data back, or train anew")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"data": sizes, "overrides": given}, path)
    write_config(config, folder / CONFIG)


def reopen(folder: Path) -> Tuple[AppConfig, List[str]]:
    """The config and the command line's settings of a run that was cut off.

    Raises:
        ConfigError: settings beside ``run`` and ``resume``, or a sweep.
        RunError: there is nothing to go on with.
    """
    for override in overrides():
        key = override.lstrip("+~").split("=", 1)[0]
        if key not in ("run", "resume", "job"):
            raise config_error(key, "must be left out with resume=true", override, "settings come from the run")
    if in_sweep():
        raise config_error("resume", "must be false in a sweep", True, "go on with one run at a time")
    if (folder / RESULTS).exists():
        raise RunError(f"run={str(folder)!r} must be a run that was cut off; it has ended, with {RESULTS}")
    config = read_config(folder)
    if config.trainer.strategy == "fsdp":
        raise RunError(f"run={str(folder)!r} must be a run without trainer=fsdp, which is not gone on with; train anew")
    facts: Dict[str, Any] = json.loads((folder / CHECKPOINTS / START).read_text(encoding="utf-8"))
    return config, facts["overrides"]

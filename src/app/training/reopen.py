"""A run's folder when training begins, and when it goes on after having been cut off."""

from pathlib import Path
from typing import Any, Dict, List, Tuple

from app.data.sequences import SequenceData
from app.errors import RunError
from app.run_config import CONFIG, read_config
from app.run_folder import RESULTS, in_sweep, overrides, read_json, write_config, write_json
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
        RunError: the data are no longer what they were, or what was written down is damaged.
    """
    path = folder / CHECKPOINTS / START
    sizes = {"train": [len(data.train), data.train.tokens], **{name: [len(d), d.tokens] for name, d in data.tests}}
    if path.exists():
        before = _read_start(folder)["data"]
        if before != sizes:
            raise RunError(f"run={str(folder)!r} must be gone on with on the same data; got [sequences, steps] "
                           f"{sizes}, before {before}; put the old data back, or train anew")
        return
    write_config(config, folder / CONFIG)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json({"data": sizes, "overrides": given}, path)  # last: who finds it finds the config


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
    return config, _read_start(folder)["overrides"]


def _read_start(folder: Path) -> Dict[str, Any]:
    path = folder / CHECKPOINTS / START
    if not path.exists():
        raise RunError(f"run={str(folder)!r} must be a run that had begun to train; it has no {CHECKPOINTS}/{START}; "
                       "train anew")
    facts = read_json(path)
    if not isinstance(facts.get("data"), dict) or not isinstance(facts.get("overrides"), list):
        raise RunError(f"{path} must hold 'data' and 'overrides'; got {', '.join(facts) or 'nothing'}; train anew")
    return facts

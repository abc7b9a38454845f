"""Checks of a run's folder when a training begins and when it is resumed. Needs no torch."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from app.errors import RunError
from app.run_folder import CHECKPOINTS, RESULTS, in_sweep, overrides, read_json, write_json
from cfg.app import AppConfig
from cfg.job import TrainJobConfig
from cfg.validation import config_error
from encoders.training.run_config import CONFIG, read_config, write_config

if TYPE_CHECKING:
    from encoders.training.data.sequences import SequenceData

__all__ = ["begin", "edited", "reopen"]

log = logging.getLogger(__name__)

START = "start.json"
LONGER = ("trainer.max_epochs", "job.patience")
"""Settings that may be given together with ``resume=true``, to train for longer, even if the run has ended."""
FREE = ("trainer.threads", "trainer.progress", "data.train_path", "data.test_path", "data.scratch", "logger.")
"""Settings that may be edited between two starts, because results do not depend on them. Files may have moved."""


def begin(folder: Path, config: AppConfig, data: "SequenceData", given: List[str]) -> None:
    """Write the facts that must be the same at a restart, or check them if this is a restart.

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
            raise RunError(f"run={str(folder)!r} must be resumed on the same data; got [sequences, steps] "
                           f"{sizes}, before {before}; put the old data back, or train again")
        if _longer():
            _open_again(folder, config, sizes, given)
        return
    write_config(config, folder / CONFIG)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"data": sizes, "overrides": given, "config": dataclasses.asdict(config)}
    write_json(facts, path)  # last: if it exists, the config does too


def reopen(folder: Path) -> Tuple[AppConfig, List[str]]:
    """The config and the command line's settings of an interrupted run.

    Raises:
        ConfigError: there are other settings than ``run`` and ``resume``, or this is a sweep. RunError: there is
            nothing to resume, or its config has changed since it began.
    """
    for override in overrides():
        key = override.lstrip("+~").split("=", 1)[0]
        if key not in ("run", "resume", "job", *LONGER):
            raise config_error(key, "must be left out with resume=true", override, "settings come from the run; "
                               f"to train for longer, give {' or '.join(LONGER)}")
    if in_sweep():
        raise config_error("resume", "must be false in a sweep", True, "resume one run at a time")
    longer = _longer()
    if (folder / RESULTS).exists() and not longer:
        raise RunError(f"run={str(folder)!r} must be an interrupted run; this one has ended, with {RESULTS}; to train "
                       "it for longer, give trainer.max_epochs=N as well")
    config = read_config(folder)
    start = _read_start(folder)
    changes = edited(start["config"], json.loads(json.dumps(dataclasses.asdict(config))))
    refused = {key: values for key, values in changes.items() if not key.startswith(FREE) and key not in longer}
    if refused:
        listed = ", ".join(f"{key}={now!r} (before: {before!r})" for key, (before, now) in refused.items())
        raise RunError(f"run={str(folder)!r} must be resumed with the settings that it began with; got in its "
                       f"{CONFIG} {listed}; put them back, or train again")
    for key, (before, now) in changes.items():
        log.info("%s=%r, edited since the run began with %r", key, now, before)
    return _with(config, longer, start["config"].get("trainer", {}).get("max_epochs")), start["overrides"]


def _longer() -> Dict[str, int]:
    """The settings of `LONGER` that the command line gives."""
    given = (override.lstrip("+~").partition("=") for override in overrides())
    found = {key: value for key, _, value in given if key in LONGER}
    for key, value in found.items():
        if not value.isdigit():
            raise config_error(key, "must be an integer", value)
    return {key: int(value) for key, value in found.items()}


def _with(config: AppConfig, longer: Mapping[str, int], before: Optional[int]) -> AppConfig:
    """The config with a longer schedule than ``before``; None where the run counts no epochs."""
    if not longer:
        return config
    epochs = longer.get("trainer.max_epochs", before)
    if "trainer.max_epochs" in longer and (before is None or longer["trainer.max_epochs"] < before):
        rule = "must be left out for a run whose length is no number of epochs" if before is None else (
            f"must be at least {before}, as many as the run has")
        raise config_error("trainer.max_epochs", rule, epochs)
    job = config.job_as(TrainJobConfig)
    job = dataclasses.replace(job, patience=longer.get("job.patience", job.patience))
    trainer = config.trainer if epochs is None else dataclasses.replace(config.trainer, max_epochs=epochs)
    return dataclasses.replace(config, trainer=trainer, job=job)


def _open_again(folder: Path, config: AppConfig, sizes: Dict[str, Any], given: List[str]) -> None:
    """Turn a finished run into an interrupted one with a longer schedule. If this is killed, the same command completes
    it.
    """
    facts = {"data": sizes, "overrides": given, "config": dataclasses.asdict(config)}
    write_json(facts, folder / CHECKPOINTS / START)
    write_config(config, folder / CONFIG)
    for path in (folder / RESULTS, *(folder / CHECKPOINTS).glob("*.done"), *(folder / CHECKPOINTS).glob("refit-*")):
        path.unlink(missing_ok=True)


def edited(before: Any, now: Any, key: str = "") -> Dict[str, Tuple[Any, Any]]:
    """``(before, now)`` of every setting that differs; None for a missing one.

    Example:
        >>> edited({"seed": 0, "job": {"noise": 0.0}}, {"seed": 1, "job": {"noise": 0.0}})
        {'seed': (0, 1)}
    """
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return {} if before == now else {key: (before, now)}
    found: Dict[str, Tuple[Any, Any]] = {}
    for name in dict.fromkeys([*before, *now]):
        found.update(edited(before.get(name), now.get(name), f"{key}.{name}" if key else name))
    return found


def _read_start(folder: Path) -> Dict[str, Any]:
    path = folder / CHECKPOINTS / START
    if not path.exists():
        raise RunError(f"run={str(folder)!r} must be a run that has begun to train; it has no {CHECKPOINTS}/{START}; "
                       "train again")
    facts = read_json(path)
    kinds = {"data": dict, "overrides": list, "config": dict}
    if not all(isinstance(facts.get(name), kind) for name, kind in kinds.items()):
        raise RunError(f"{path} must hold 'data', 'overrides' and 'config'; got {', '.join(facts) or 'nothing'}; "
                       "train again")
    return facts

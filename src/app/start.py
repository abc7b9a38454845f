"""The start of a run or a sweep, as a Hydra callback: everything is checked before Hydra writes anything."""

import copy
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from app.errors import RunError
from app.explain import explain
from app.preflight import check_start
from app.run_folder import check_shared, is_first_process
from app.sweep.composed import composed_jobs
from app.workplace import Workplace
from cfg.app import AppConfig
from cfg.validation import known_fields

__all__ = ["Refused", "RunStart", "leave_places"]

MOST = 100  # starts in one second
SHOWN = 5  # how many jobs of a sweep are listed with their reasons
_places: List[Workplace] = []


class Refused(SystemExit):
    """Carries an error through Hydra, which turns other errors of callbacks into warnings."""

    def __init__(self, error: Exception) -> None:
        super().__init__(1)
        self.error = error


def leave_places() -> None:
    """Release the folders that this process has locked; see `Workplace.leave`."""
    while _places:
        _places.pop().leave()


class RunStart(Callback):
    """Refuses a run or a sweep that cannot start; otherwise locks its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _past_hydra():
            checked = _check(config)
            if is_first_process():
                _take(config, "run", checked.resume)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _past_hydra():
            jobs, refused = 0, []
            for overrides, compose in composed_jobs(config):
                jobs += 1
                try:
                    _check(compose())
                except Exception as error:
                    refused.append((overrides, error))
            if refused:
                raise _reason(refused, jobs)
            HydraConfig.instance().set_config(config)
            if is_first_process():
                _take(config, "sweep", False)


@contextmanager
def _past_hydra() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Refused(error) from error


def _check(config: DictConfig) -> AppConfig:
    """The config of a job, if it can start."""
    HydraConfig.instance().set_config(config)
    job = copy.deepcopy(config)
    with read_write(job), open_dict(job):
        del job["hydra"]
    checked: AppConfig = known_fields(OmegaConf.to_object(job))
    if not checked.resume:
        check_shared(checked.trainer.devices * checked.trainer.num_nodes)
    check_start(checked)
    return checked


def _take(config: DictConfig, kind: str, again: bool) -> None:
    """Lock the folder; if it is named by the time and another run has the name of this second, lock another one."""
    first = str(OmegaConf.select(config, f"hydra.{kind}.dir"))
    given = again or any(o.startswith(f"hydra.{kind}.dir=") for o in config.hydra.overrides.hydra)
    folder, number = first, 1
    while True:
        try:
            if not given and _is_used(Path(folder)):
                raise RunError("taken")
            _places.append(Workplace(Path(os.path.abspath(folder)), again))
            break
        except RunError:
            number += 1
            if given or number > MOST:
                raise
            folder = f"{first}_{number}"
    with read_write(config.hydra[kind]), open_dict(config.hydra[kind]):
        config.hydra[kind].dir = folder


def _is_used(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _reason(refused: List[Tuple[List[str], Exception]], jobs: int) -> Exception:
    """The error of a sweep with jobs that cannot start."""
    texts: Dict[str, str] = {}
    for overrides, error in refused:
        known = isinstance(error, (HydraException, OmegaConfBaseException))
        text = explain(error, overrides) if known else str(error)
        texts.setdefault(text, " ".join(overrides))
    if len(refused) == jobs and len(texts) == 1:
        return refused[0][1]
    listed = "; ".join(f"{overrides}: {text}" for text, overrides in list(texts.items())[:SHOWN])
    more = f"; and {len(texts) - SHOWN} more reasons" if len(texts) > SHOWN else ""
    return RunError(f"every job of a sweep must be able to start before any does; {len(refused)} of {jobs} cannot: "
                    f"{listed}{more}")

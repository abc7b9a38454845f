"""Checks, without torch, that a job can start: settings, files, folders, packages."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence

from app.data.door import check_door
from app.data.paths import check_data_paths, check_path
from app.errors import RunError
from app.gpu import no_device, surely_no_gpu
from app.known_runs import check_run
from app.reopening import reopen
from app.run_folder import in_sweep, overrides, refuse_overrides
from cfg.validation import config_error, nearest

if TYPE_CHECKING:
    from cfg.app import AppConfig

__all__ = ["JOBS", "check_start"]

JOBS = {name: f"app.jobs.{name}" for name in ("train", "stream", "export", "describe", "bench", "evaluate",
                                                "encode", "predict")}
RUN = {"stream": "job=stream run=FOLDER", "export": "job=export run=FOLDER", "evaluate": "job=evaluate run=FOLDER",
       "encode": "job=encode run=FOLDER job.output=EMBEDDINGS",
       "predict": "job=predict run=FOLDER job.input=FILE job.output=PREDICTIONS"}
"""The jobs that use a trained run, with an example of each command."""
FROM_RUN = {"stream": ("encoder", "data", "trainer"), "export": ("encoder", "data", "trainer"),
            "evaluate": ("encoder",), "encode": ("encoder",), "predict": ("encoder",)}
"""The settings that such a job takes from its run."""

ON_DEVICE = ("train", "bench", "evaluate", "encode", "predict")
"""The jobs that run on ``trainer.accelerator``."""

_APP = ("torch", "numpy", "lightning", "torchmetrics", "matplotlib", "rich")
_LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def check_start(config: "AppConfig") -> None:
    """Check that a job can start, as far as this is possible before anything large is imported.

    Raises:
        ConfigError: the job does not exist, or settings contradict each other.
        DataError: a file of the data is missing, is not a regular file, or lacks a column.
        RunError: the run does not exist, there is nothing to resume, or a package is not installed.
    """
    job = config.job.name
    if job not in JOBS:
        raise config_error("job.name", f"must be one of {', '.join(JOBS)}", job, nearest(job, JOBS))
    if config.resume and job != "train":
        raise config_error("resume", f"must be false with job={job}", True, "only job=train can resume a run")
    _check_packages(config)
    _check_gpu(config)
    if config.resume:
        reopen(Path(config.run or ""))
        return
    if job == "train" and config.run is not None:
        raise config_error("run", "must be null with job=train", config.run, "to resume it, set resume=true too")
    if job in RUN:
        if config.run is None:
            raise config_error("run", "must be the folder of a finished run", None, f"python -m app {RUN[job]}")
        refuse_overrides(job, FROM_RUN[job])
        check_run(config.run)
    if job == "train" or (_data_given() and config.run is not None):
        check_data_paths(config.data)
    if job == "train":
        check_door(config)
    path: Optional[str] = getattr(config.job, "input", None)
    if path is not None:
        check_path("job.input", path)


def _data_given() -> bool:
    return any(override.lstrip("+~").startswith(("data=", "data.")) for override in overrides())


def _check_gpu(config: "AppConfig") -> None:
    """Jobs of a sweep may run on other machines than the one that starts them."""
    device = getattr(config.job, "device", None)
    if in_sweep() or not (config.job.name in ON_DEVICE or device is not None):
        return
    if device is None and config.trainer.accelerator == "gpu" and surely_no_gpu():
        raise no_device("trainer.accelerator", "gpu", "trainer=cpu")
    if device is not None and device.startswith("cuda") and surely_no_gpu():
        raise no_device("job.device", device, "job.device=cpu")


def _check_packages(config: "AppConfig") -> None:
    job = config.job.name
    _need(_APP, "app", f"job {job!r}")
    output = getattr(config.job, "output", None)
    if job == "stream" and output is not None and output.endswith(".parquet"):
        _need(("pyarrow",), "parquet", f"job.output={output!r}")
    if getattr(config.data, "tokenizer", None) is not None and job == "train":
        _need(("tokenizers",), "text", "data.tokenizer")
    if job == "train" and config.logger.name in _LOGGERS:
        _need((config.logger.name,), _LOGGERS[config.logger.name], f"logger={config.logger.name}")


def _need(packages: Sequence[str], extra: str, who: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise RunError(f"{who} needs the package {package!r}; pip install 'myfla[{extra}]'")

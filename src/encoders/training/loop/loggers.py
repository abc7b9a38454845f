"""Third-party loggers, chosen in the config."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Optional, Type, TypeVar, Union

from lightning.pytorch.loggers import Logger, WandbLogger

from cfg.app import AppConfig
from cfg.logger import LoggerConfig, MlflowLoggerConfig, WandbLoggerConfig
from cfg.validation import config_error
from encoders.errors import RunError

__all__ = ["finish", "make_logger"]

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
Settings = TypeVar("Settings", bound=LoggerConfig)


def make_logger(config: AppConfig, folder: Path, stage: str) -> Union[Logger, bool]:
    """The logger for the figures of every epoch, besides ``metrics.csv``.

    Args:
        config: the whole config; it goes to the logger as well.
        folder: of the run.
        stage: of the training, ``fit`` or ``refit``.

    Returns:
        a Lightning logger, or False.

    Raises:
        ConfigError: a logger's name with the settings of another.
        RunError: its package is not installed.
    """
    name = config.logger.name
    if name not in EXTRAS:
        return False
    try:
        made = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](config, folder, stage)
    except ModuleNotFoundError as problem:
        raise RunError(f"logger={name} needs the package {name!r} ({problem}); pip install 'myfla[{EXTRAS[name]}]'"
                       ) from None
    made.log_hyperparams(dataclasses.asdict(config))
    return made


def finish(logger: Optional[Logger]) -> None:
    """Close the run at W&B: the next stage, or the next job of a sweep in this process, would otherwise write to it."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _tensorboard(config: AppConfig, folder: Path, stage: str) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version=stage)


def _wandb(config: AppConfig, folder: Path, stage: str) -> Logger:
    settings = _settings(config, WandbLoggerConfig)
    return WandbLogger(name=f"{folder.name} {stage}", save_dir=folder, id=_key(folder, stage), project=settings.project,
                       offline=settings.offline, entity=settings.entity, resume="allow")


def _mlflow(config: AppConfig, folder: Path, stage: str) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    settings, key = _settings(config, MlflowLoggerConfig), _key(folder, stage)
    store = settings.tracking_uri or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(settings.experiment)
    known = [] if experiment is None else client.search_runs([experiment.experiment_id], f"tags.myfla = '{key}'")
    return MLFlowLogger(settings.experiment, f"{folder.name} {stage}", store, tags={"myfla": key},
                        run_id=known[0].info.run_id if known else None)


def _settings(config: AppConfig, kind: Type[Settings]) -> Settings:
    """Of the logger, with the fields that its kind has."""
    if not isinstance(config.logger, kind):
        name = config.logger.name
        raise config_error("logger.name", "must come with the settings of that logger", name, f"use logger={name}")
    return config.logger


def _key(folder: Path, stage: str) -> str:
    """A name of the run in this folder, by which a restart continues it."""
    return hashlib.sha256(f"{folder.resolve()} {stage}".encode()).hexdigest()[:16]

"""Logger configs: where the figures of every epoch go, besides ``metrics.csv``."""

from dataclasses import dataclass
from typing import Dict, Optional, Type

from cfg.validation import Fields

__all__ = ["LOGGER_CONFIGS", "LoggerConfig", "MlflowLoggerConfig", "WandbLoggerConfig"]


@dataclass
class LoggerConfig:
    """``csv``: the run's own table, which is always there; ``tensorboard``: event files in the run's folder as well.

    Args:
        name: the logger: ``csv``, ``tensorboard``, ``wandb`` or ``mlflow``.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``logger.<field>``.
    """

    name: str = "csv"

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field. A subclass calls ``super().validate()`` and then checks its own."""
        Fields(self, "logger").choice("name", tuple(LOGGER_CONFIGS))


@dataclass
class WandbLoggerConfig(LoggerConfig):
    """Weights & Biases.

    Args:
        project: project of Weights & Biases to which the run belongs.
        offline: only write to the run's folder; ``wandb sync`` sends the figures later.
        entity: user or team; null for the default one.
    """

    name: str = "wandb"
    project: str = "myfla"
    offline: bool = False
    entity: Optional[str] = None

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "logger")
        fields.text("project")
        fields.flag("offline")
        fields.text("entity", optional=True)


@dataclass
class MlflowLoggerConfig(LoggerConfig):
    """MLflow.

    Args:
        tracking_uri: address of a tracking server or store; null: the file ``mlflow.db`` in the run's folder.
        experiment: experiment of MLflow to which the run belongs.
    """

    name: str = "mlflow"
    tracking_uri: Optional[str] = None
    experiment: str = "myfla"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "logger")
        fields.text("tracking_uri", optional=True)
        fields.text("experiment")


LOGGER_CONFIGS: Dict[str, Type[LoggerConfig]] = {
    "csv": LoggerConfig, "tensorboard": LoggerConfig, "wandb": WandbLoggerConfig,
    "mlflow": MlflowLoggerConfig}

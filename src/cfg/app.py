"""The application's whole config, and its schemas in Hydra's ConfigStore."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Type, TypeVar

from omegaconf import MISSING

from cfg.bench import BenchJobConfig
from cfg.callbacks import CallbacksConfig
from cfg.check import CheckConfig
from cfg.data import DATA_CONFIGS, DataConfig
from cfg.describe import DescribeJobConfig
from cfg.encode import EncodeJobConfig, EvaluateJobConfig, PredictJobConfig
from cfg.encoder import EncoderConfig
from cfg.export import ExportJobConfig
from cfg.hydra_versions import register_resolver, store_config
from cfg.job import JOB_CONFIGS, JobConfig
from cfg.logger import LOGGER_CONFIGS, LoggerConfig
from cfg.store import register_encoder_configs
from cfg.stream import StreamJobConfig
from cfg.trainer import TrainerConfig
from cfg.validation import ConfigError, Fields, config_error

__all__ = ["GROUPS", "AppConfig", "register_configs"]

Job = TypeVar("Job", bound=JobConfig)


@dataclass
class AppConfig:
    """One run: an encoder, its data, a job, a trainer.

    Args:
        encoder: what turns a sequence into an embedding: see its group.
        data: where the sequences come from: see its group.
        job: what to do: see its group.
        trainer: device, length and precision of the training: see its group.
        callbacks: early stopping and checkpoints: see its group.
        logger: where to send the figures of every epoch, besides ``metrics.csv``: see its group.
        run: folder of a finished run, for jobs that use one; with ``resume``, folder of an interrupted run.
        resume: continue the training of ``run`` from its last checkpoint, with its own config.
        seed: fixes the split, the initial weights, the order of the batches and the noise.
        deterministic: use only deterministic algorithms, so that the same seed gives the same files.
        checks: conditions that the runs of a sweep must meet; see `cfg.check.CheckConfig`.

    Raises:
        ConfigError: a field breaks its rule; the message starts with its key.
    """

    encoder: EncoderConfig = MISSING
    data: DataConfig = MISSING
    job: JobConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    run: Optional[str] = None
    resume: bool = False
    seed: int = 0
    deterministic: bool = True
    checks: List[CheckConfig] = field(default_factory=list)

    def job_as(self, kind: Type[Job]) -> Job:
        """The job's config, for the job whose config it must be.

        Raises:
            ConfigError: it is another job's.
        """
        if not isinstance(self.job, kind):
            raise config_error("job", f"must be {kind.__dataclass_fields__['name'].default}", self.job.name)
        return self.job

    def __post_init__(self) -> None:
        fields = _RootFields(self, "")
        fields.text("run", optional=True)
        fields.flag("resume")
        if self.resume and self.run is None:
            raise fields.error("run", "must be the folder of the run to resume, for resume=true", None)
        fields.integer("seed", 0, (1 << 31) - 1)
        fields.flag("deterministic")
        if isinstance(self.logger, LoggerConfig) and self.logger.name == "csv" and self.callbacks.learning_rate_monitor:
            raise fields.error("callbacks.learning_rate_monitor", "must be false with logger=csv", True,
                               "metrics.csv has the learning rate of every epoch; logger=tensorboard shows every step")


GROUPS: Dict[str, Dict[str, Type[Any]]] = {
    "data": {**DATA_CONFIGS},
    "job": {**JOB_CONFIGS, "predict": PredictJobConfig, "evaluate": EvaluateJobConfig, "encode": EncodeJobConfig,
            "stream": StreamJobConfig, "export": ExportJobConfig, "bench": BenchJobConfig,
            "describe": DescribeJobConfig},
    "trainer": {"lightning": TrainerConfig},
    "callbacks": {"lightning": CallbacksConfig},
    "logger": {**LOGGER_CONFIGS},
}
"""The classes behind each group of settings, encoders apart, by the name of their schema."""


class _RootFields(Fields):
    """Fields at the top of the config: the key has no prefix."""

    def error(self, name: str, rule: str, got: Any, hint: str = "") -> ConfigError:
        return config_error(name, rule, got, hint)


def register_configs() -> None:
    """Store the root schema as ``app`` and a schema for every preset as ``<group>/schema/<name>``.

    Calling it again changes nothing.
    """
    # For hydra.run.dir: a resumed run continues in its own folder.
    register_resolver("run_dir", lambda resume, run, new: run if resume and run else new)
    store_config(name="app_schema", node=AppConfig, provider="app")
    for group, classes in GROUPS.items():
        for name, config_class in classes.items():
            store_config(group=f"{group}/schema", name=name, node=config_class, provider="app")
    register_encoder_configs()

"""The config of a finished run."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, Mapping, Type

from omegaconf import OmegaConf
from yaml import YAMLError

from cfg.app import AppConfig
from cfg.callbacks import CallbacksConfig
from cfg.check import CheckConfig
from cfg.data import DATA_CONFIGS
from cfg.job import JOB_CONFIGS
from cfg.logger import LOGGER_CONFIGS
from cfg.trainer import TrainerConfig
from cfg.validation import config_error, nearest
from encoders import encoder_config
from encoders.errors import PluginError, RunError, UnknownEncoderError
from encoders.training.plain_yaml import find_interpolation, read_plain_yaml
from myfla.utils.atomic import write_atomic

__all__ = ["CONFIG", "part_of_config", "read_config", "write_config"]

CONFIG = "config.yaml"


def write_config(config: Any, path: Path) -> None:
    """The config as YAML, every value filled in."""
    write_atomic(path, OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))).encode("utf-8"))


def read_config(run: Path) -> AppConfig:
    """The checked config that a run of ``job=train`` left in its folder.

    It is read as plain data: an interpolation such as ``${oc.env:NAME}`` is refused, never resolved.

    Args:
        run: the folder.

    Raises:
        RunError: no such file, or one that breaks the rules: damaged, or of another version of this package.
        PluginError, UnknownEncoderError: its encoder is not installed.
    """
    if not run.is_dir():
        raise RunError(f"run must be the folder of a finished run; got {str(run)!r}, which is not a folder")
    path = run / CONFIG
    try:
        values = read_plain_yaml(path)
        found = find_interpolation(values)
        if found:
            raise ValueError(f"every value must be written out; got an interpolation at {found}")
        parts = {"encoder": encoder_config(values.pop("encoder"))}
        for key, classes in (("data", DATA_CONFIGS), ("job", JOB_CONFIGS)):
            part = values.pop(key)
            parts[key] = part_of_config(key, _named(key, part, classes), part)
        parts["trainer"] = part_of_config("trainer", TrainerConfig, values.pop("trainer"))
        parts["callbacks"] = part_of_config("callbacks", CallbacksConfig, values.pop("callbacks", {}))
        logger = values.pop("logger")
        parts["logger"] = part_of_config("logger", _named("logger", logger, LOGGER_CONFIGS), logger)
        parts["checks"] = [CheckConfig(**check) for check in values.pop("checks", [])]
        known = {name: values[name] for name in ("run", "seed", "deterministic") if name in values}
        return AppConfig(**parts, **known)
    except (PluginError, UnknownEncoderError) as problem:
        raise type(problem)(f"run={str(run)!r}: {problem}") from None
    except (OSError, YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as problem:
        hint = "it is damaged, or was written by another version of this package: use that one, or train again"
        raise RunError(f"run={str(run)!r} must hold the {CONFIG} of a trained run; {problem}; {hint}") from None


def _named(key: str, values: Mapping[str, Any], classes: Mapping[str, Type[Any]]) -> Type[Any]:
    name = values["name"]
    if name not in classes:
        raise config_error(f"{key}.name", f"must be one of {', '.join(classes)}", name, nearest(name, classes))
    return classes[name]


def part_of_config(key: str, config_class: Type[Any], values: Dict[str, Any]) -> Any:
    """A checked part of a config from plain values.

    Args:
        key: where it sits, e.g. ``trainer``.
        config_class: of the part.
        values: by field.

    Raises:
        ConfigError: a field that does not exist, or breaks its rule.
    """
    known = config_class.__dataclass_fields__
    for name in values:
        if name not in known:
            raise config_error(f"{key}.{name}", "must be a field of this version", values[name], nearest(name, known))
    return config_class(**values)

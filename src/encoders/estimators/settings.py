"""From an estimator's parameters to the config of a run, and back."""

import dataclasses
from typing import Any, Dict, Mapping, Optional

import numpy as np

from cfg.app import AppConfig
from cfg.callbacks import CallbacksConfig
from cfg.data import ArraysDataConfig
from cfg.encoder import ENCODER_CONFIGS, EncoderConfig
from cfg.encoder_mapping import to_mapping
from cfg.job import TrainJobConfig
from cfg.trainer import TrainerConfig
from cfg.validation import config_error, nearest
from encoders.configs import encoder_config
from encoders.errors import InputError
from encoders.training.presets import preset
from encoders.training.run_config import part_of_config

__all__ = ["SHORT", "make_config", "seed_of", "settings_of"]

SHORT = {"hidden_size": "encoder.hidden_size", "num_layers": "encoder.num_layers", "max_epochs": "trainer.max_epochs",
         "learning_rate": "job.learning_rate", "batch_size": "data.batch_size", "patience": "job.patience",
         "validation_fraction": "data.validation_fraction", "refit": "job.refit", "missing": "data.missing",
         "own_scale": "data.own_scale"}
"""Parameters that stand for one setting each; None leaves the application's default."""

_PARTS = {"data": ArraysDataConfig, "job": TrainJobConfig, "trainer": TrainerConfig, "callbacks": CallbacksConfig}
_PRESETS = {"data": "ts", "job": "train", "trainer": "cpu", "callbacks": "default"}


def make_config(encoder: Any, objective: str, settings: Mapping[str, Any], seed: int, device: str,
                threads: Optional[int], progress: bool) -> AppConfig:
    """The checked config that ``python -m app`` would make from the same settings.

    Args:
        encoder: a name, a mapping with ``name`` and fields, or a config.
        objective: of the job.
        settings: ``{"job.noise": 0.1, ...}``, by their keys on the command line.
        seed, device, threads, progress: of the run.

    Raises:
        ConfigError: a setting does not exist (the message has the nearest one) or breaks its rule.
        UnknownEncoderError, PluginError: no such encoder.
    """
    parts: Dict[str, Dict[str, Any]] = {name: {} for name in ("encoder", *_PARTS)}
    for key, value in settings.items():
        group, _, field = str(key).partition(".")
        if group not in parts or not field:
            known = [f"{name}.{one.name}" for name, kind in _PARTS.items() for one in dataclasses.fields(kind)]
            raise config_error(str(key), "must be a setting GROUP.FIELD of " + ", ".join(parts), value,
                               nearest(key, known))
        parts[group][field] = value
    made = {name: part_of_config(name, kind, {**_preset(name), **_fixed(name, objective, device, threads, progress),
                                              **parts[name]})
            for name, kind in _PARTS.items()}
    return AppConfig(encoder=_encoder(encoder, parts["encoder"], objective), seed=seed, **made)


def settings_of(config: AppConfig) -> Dict[str, Any]:
    """The settings in which a run's config differs from a new one; `make_config` makes the same config from them."""
    found: Dict[str, Any] = {}
    plain = make_config(config.encoder.name, _objective(config), {}, config.seed, "cpu", None, False)
    for name in ("encoder", *_PARTS):
        now, before = dataclasses.asdict(getattr(config, name)), dataclasses.asdict(getattr(plain, name))
        left_out = {"name", "input_size", "vocab_size", "objective", "accelerator", "threads", "progress"}
        found.update({f"{name}.{key}": value for key, value in now.items()
                      if key in before and key not in left_out and value != before[key]})
    return found


def _objective(config: AppConfig) -> str:
    return str(getattr(config.job, "objective", "classify"))


def _preset(part: str) -> Dict[str, Any]:
    known = [field.name for field in dataclasses.fields(_PARTS[part])]
    return {key: value for key, value in preset(part, _PRESETS[part]).items() if key in known}


def _fixed(part: str, objective: str, device: str, threads: Optional[int], progress: bool) -> Dict[str, Any]:
    fixed: Dict[str, Dict[str, Any]] = {
        "job": {"objective": objective},
        "trainer": {"name": device, "accelerator": device, "threads": threads, "progress": progress},
    }
    return fixed.get(part, {})


def _encoder(encoder: Any, changes: Mapping[str, Any], objective: str) -> EncoderConfig:
    if isinstance(encoder, EncoderConfig):
        return encoder_config({**to_mapping(encoder), **changes})
    given: Dict[str, Any] = dict(encoder) if isinstance(encoder, Mapping) else {"name": encoder}
    own = preset("encoder", str(given.get("name"))) if given.get("name") in ENCODER_CONFIGS else {}
    if objective == "next_step" and own:
        own["direction"] = "causal"
    return encoder_config({**own, **given, **changes})


def seed_of(random_state: Any) -> int:
    """The seed of a run: the integer itself, or one drawn from a generator (numpy's global one for None)."""
    most = (1 << 31) - 1
    if random_state is None:
        return int(np.random.randint(most))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(most))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(most))
    if isinstance(random_state, (int, np.integer)) and 0 <= random_state <= most:
        return int(random_state)
    raise InputError(f"random_state must be an integer from 0 to {most}, a generator of numpy or None; got "
                     f"{random_state!r}")

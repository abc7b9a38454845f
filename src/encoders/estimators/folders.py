"""An estimator's folder: a run's folder, with the estimator's parameters and labels."""

from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Tuple

from cfg.encoder import EncoderConfig
from cfg.encoder_mapping import portable_mapping
from encoders.errors import RunError
from encoders.estimators.settings import settings_of
from encoders.training.run_config import CONFIG, write_config
from encoders.training.trained import Trained, estimator_facts, load_trained, save_task

__all__ = ["read_folder", "write_folder"]

_CLASSES = {"classify": "SequenceClassifier", "regress": "SequenceRegressor", "next_step": "SequenceEncoder"}
_PLAIN = (str, int, float, bool, type(None))


def write_folder(folder: Path, estimator: Any, facts: Mapping[str, Any]) -> Path:
    """Write ``config.yaml``, the encoder with its input pipeline, and the task with what belongs to the estimator.

    Args:
        folder: made if missing.
        estimator: fitted.
        facts: of its kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params = {name: _plain(value) for name, value in estimator.get_params(deep=False).items() if name != "callbacks"}
    params["random_state"] = estimator.config_.seed
    write_config(estimator.config_, folder / CONFIG)
    estimator.encoder_.save(folder, estimator.pipeline_)
    save_task(folder, estimator.task_, {"params": params, **facts})
    return folder


def read_folder(folder: Path, device: str, who: str, objectives: Sequence[str]) -> Tuple[Trained, Dict[str, Any], Dict]:
    """The trained model, the parameters of the estimator, and the facts that `write_folder` was given.

    Args:
        folder: folder of an estimator or of a run of ``job=train``.
        device: the device of the model.
        who: the class of the estimator, for messages.
        objectives: the objectives of that class.

    Raises:
        RunError: the folder cannot be read, or its model is of another kind.
    """
    trained = load_trained(folder, device)
    if trained.task is None or trained.pipeline is None:
        raise RunError(f"{who}.load: {str(folder)!r} must hold a task (task.safetensors); got an encoder by itself; "
                       "use encoders.load_encoder")
    spec = trained.task.spec
    if trained.pipeline.schema is None:
        raise RunError(f"{who}.load: {str(folder)!r} must hold a model of numbers; got one of token ids; use "
                       "encoders.load_encoder")
    if spec.objective not in objectives:
        raise RunError(f"{who}.load: {str(folder)!r} must hold a model for {' or '.join(objectives)}; got one for "
                       f"{spec.objective}; use {_CLASSES[spec.objective]}.load")
    if spec.per_step and not spec.shifts and who != "SequenceEncoder":
        raise RunError(f"{who}.load: {str(folder)!r} must hold a model with one output a sequence; got one with one a "
                       f"step; use python -m app job=predict run={folder}, or SequenceEncoder.load for embeddings")
    facts = estimator_facts(folder)
    config = trained.config
    params = facts.get("params") or {"encoder": config.encoder.name, "settings": settings_of(config),
                                     "random_state": config.seed}
    return trained, {**params, "device": device if device in ("cpu", "mps") else "gpu"}, facts


def _plain(value: Any) -> Any:
    if isinstance(value, EncoderConfig):
        return portable_mapping(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, _PLAIN):
        return value
    return value.item() if hasattr(value, "item") else None

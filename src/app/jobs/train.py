"""``job=train``: train a classifier, choose the epoch on validation data, report on test data."""

import dataclasses
import logging
import platform
from pathlib import Path
from typing import Any, Dict, Tuple

import lightning
import torch

from app.data import load_data
from app.data.module import SequenceDataModule
from app.data.sequences import SequenceData
from app.report import scores, show_results, write_results
from app.run_folder import RESULTS, in_sweep, overrides, write_config, write_json
from app.training.classifier import Classifier
from app.training.fit import Fit, fit, predict
from app.training.quiet import quiet
from cfg.app import AppConfig
from cfg.validation import config_error
from encoders import build_encoder

__all__ = ["run"]

log = logging.getLogger(__name__)

_DEFAULT_THREADS = torch.get_num_threads()


def run(config: AppConfig, folder: Path) -> float:
    """Train, test, and write everything below ``folder``.

    Returns:
        the best validation loss.

    Raises:
        ConfigError, DataError, PluginError, UnknownEncoderError: before anything is trained.
    """
    quiet()
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    torch.use_deterministic_algorithms(config.deterministic)
    data = load_data(config.data)
    config = dataclasses.replace(config, encoder=_sized(config, data))
    write_config(config, folder / "config.yaml")
    module, parts, first = _fit(config, data, folder)
    last = first
    if config.job.refit:
        module, parts, last = _refit(config, data, folder, first)
    prediction, speed = predict(module, parts, config, folder)
    results: Dict[str, Any] = {
        **scores(prediction, len(data.classes)),
        **first.figures,
        "epoch": first.epoch,
        "epochs": first.epochs,
        "fit_seconds": round(first.seconds + (last.seconds if last is not first else 0.0), 3),
        "train_tokens_per_s": round(last.tokens_per_s, 1),
        "encode_tokens_per_s": round(speed.tokens / max(speed.seconds, 1e-9), 1),
        "encode_sequences_per_s": round(speed.sequences / max(speed.seconds, 1e-9), 1),
        "encoder": config.encoder.name,
        "encoder_parameters": sum(p.numel() for p in module.encoder.parameters()),
        "data": config.data.name,
        "train_sequences": len(parts.train),
        "validation_sequences": len(data.train) - len(parts.train),
        "test_sequences": len(data.test),
        "seed": config.seed,
        "refit": config.job.refit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "overrides": overrides(),
    }
    module.encoder.save(folder)
    write_results(folder, module, parts.standardizer, data.classes, prediction, first)
    write_json(results, folder / RESULTS)  # last: a folder with it is a run that ended well
    show_results(results, folder, brief=in_sweep())
    return first.figures["val_loss"]


def _sized(config: AppConfig, data: SequenceData) -> Any:
    """The encoder's config with the number of channels of the data."""
    encoder = config.encoder
    if encoder.vocab_size is not None:
        raise config_error("encoder.vocab_size", f"must be null for data of {data.input_size} real-valued channels",
                           encoder.vocab_size)
    if encoder.input_size not in (None, data.input_size):
        raise config_error("encoder.input_size", f"must be {data.input_size}, the channels of data={config.data.name}, "
                           "or null", encoder.input_size)
    return dataclasses.replace(encoder, input_size=data.input_size)


def _fit(config: AppConfig, data: SequenceData, folder: Path) -> Tuple[Classifier, SequenceDataModule, Fit]:
    parts = SequenceDataModule(data, config.data, config.seed)
    module = _fresh(config, data)
    log.info("%s: %d parameters; %d sequences to train on, %d to validate, %d to test", config.encoder.name,
             sum(p.numel() for p in module.parameters()), len(parts.train), len(parts.validation), len(parts.test))
    return module, parts, fit(module, parts, config, folder)


def _refit(
    config: AppConfig, data: SequenceData, folder: Path, first: Fit
) -> Tuple[Classifier, SequenceDataModule, Fit]:
    """Train afresh on all training data, with a schedule as long as the number of epochs that validation chose."""
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_epochs=first.epoch))
    parts = SequenceDataModule(data, config.data, config.seed, validate=False)
    module = _fresh(config, data)
    return module, parts, fit(module, parts, config, folder, "refit", earlier=first.rows)


def _fresh(config: AppConfig, data: SequenceData) -> Classifier:
    lightning.seed_everything(config.seed, workers=True)
    return Classifier(build_encoder(config.encoder), config.encoder.hidden_size, len(data.classes), config.job)

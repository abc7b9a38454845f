"""A complete training: with validation, and then again on all training data for the chosen number of epochs."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple, Sequence, Tuple

import lightning
import torch

from cfg.app import AppConfig
from cfg.job import TrainJobConfig
from encoders.build import build_encoder
from encoders.training.data.module import SequenceDataModule
from encoders.training.data.sequences import SequenceData
from encoders.training.loop.fit import Fit, fit, load_weights
from encoders.training.loop.learner import Learner, class_weights
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import Values, build_task

__all__ = ["Outcome", "prepare", "train", "whole"]

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """The result of `train`.

    Attributes:
        module: with the chosen weights.
        parts: that it was trained on last, with the input pipeline.
        first: of the training with validation.
        last: of the training afresh; ``first`` itself where there was none.
    """

    module: Learner
    parts: SequenceDataModule
    first: Fit
    last: Fit


def prepare(config: AppConfig, data: SequenceData, task: TaskSpec) -> Tuple[Learner, SequenceDataModule]:
    """The module and the data for `train`; nothing is written yet.

    Args:
        config: with the encoder's sizes filled in.
        data: with test sets, or without.
        task: what is to be learned of them.
    """
    parts = SequenceDataModule(data, config.data, config.seed, validate=config.data.validation_fraction != 0, task=task)
    if config.trainer.overfit_batches is not None:
        parts.keep(config.trainer.overfit_batches)
    module = _fresh(config, task, parts)
    log.info("%s", parts.pipeline.describe())
    log.info("%s: %d parameters; %d sequences to train on, %d to validate, %d to test", config.encoder.name,
             sum(p.numel() for p in module.parameters()), len(parts.train), len(parts.validation or ()),
             sum(map(len, parts.tests.values())))
    return module, parts


def train(module: Learner, parts: SequenceDataModule, data: SequenceData, config: AppConfig, folder: Path,
          watch: Sequence[Any] = ()) -> Outcome:
    """Train, and with ``job.refit`` train again on training and validation data together, where there are any.

    Args:
        module, parts: as `prepare` made them.
        data, config: as `prepare` was given them.
        folder: receives ``metrics.csv`` and checkpoints; an interrupted training there is resumed.
        watch: as in `encoders.training.loop.fit.fit`.

    Raises:
        RunError: as `encoders.training.loop.fit.fit`.
    """
    task = module.task.spec
    first = last = fit(module, parts, config, folder, watch=watch)
    if config.job_as(TrainJobConfig).refit and parts.validation is not None:
        module, parts, last = _refit(config, data, task, folder, first, watch)
    return Outcome(module, parts, first, last)


def whole(outcome: Outcome, config: AppConfig, folder: Path) -> Learner:
    """The complete trained module: with FSDP it is in pieces, and is read from the checkpoint."""
    if config.trainer.strategy != "fsdp":
        return outcome.module
    module = _fresh(config, outcome.module.task.spec, outcome.parts)
    load_weights(module, config, folder, "fit" if outcome.last is outcome.first else "refit", sharded=False)
    return module


def _refit(config: AppConfig, data: SequenceData, task: TaskSpec, folder: Path,
           first: Fit, watch: Sequence[Any]) -> Tuple[Learner, SequenceDataModule, Fit]:
    """Train again from the start on all training data, with a schedule of the number of epochs that validation
    chose."""
    trainer = dataclasses.replace(config.trainer, max_epochs=first.epoch, max_steps=None)
    config = dataclasses.replace(config, trainer=trainer)
    parts = SequenceDataModule(data, config.data, config.seed, validate=False, task=task)
    module = _fresh(config, task, parts)
    return module, parts, fit(module, parts, config, folder, "refit", first.rows, watch)


def _fresh(config: AppConfig, spec: TaskSpec, parts: SequenceDataModule) -> Learner:
    job = config.job_as(TrainJobConfig)
    lightning.seed_everything(config.seed, workers=True)
    encoder = build_encoder(config.encoder)
    task, targets, weight = build_task(spec, encoder.config.hidden_size), parts.train.targets, None
    if isinstance(task, Values) and not spec.shifts:
        task.measure(targets if isinstance(targets, torch.Tensor) else torch.cat(list(targets)))
    if job.class_weights == "balanced" and not spec.shifts:
        weight = class_weights(targets, spec.outputs)
    return Learner(encoder, task, job, weight)

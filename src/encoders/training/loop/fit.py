"""One call of Lightning's training loop: from a new or interrupted module to the chosen weights."""

import inspect
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import lightning
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint

from cfg.app import AppConfig
from cfg.job import TrainJobConfig
from encoders.errors import RunError
from encoders.training import CHECKPOINTS
from encoders.training.data.module import SequenceDataModule
from encoders.training.loop.budget import passes
from encoders.training.loop.callbacks import Throughput
from encoders.training.loop.checkpoint_io import SafeCheckpointIO
from encoders.training.loop.history import EpochTable
from encoders.training.loop.learner import Learner
from encoders.training.loop.loggers import finish, make_logger
from encoders.training.loop.progress import TrainingProgress
from encoders.training.loop.resume import Patience, RandomState, WholeCheckpoint
from encoders.training.loop.trainer import make_trainer
from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.utils.errors import CheckpointError

__all__ = ["Fit", "fit", "load_weights"]

KIND = "myfla.fit"


@dataclass
class Fit:
    """The result of one call of `fit`.

    Attributes:
        epoch: number of epochs that the weights were trained for.
        epochs: number of epochs of the training.
        figures: figures of that epoch: ``train_loss``, and ``val_...`` if there was validation.
        seconds: wall-clock time, without the time before a restart.
        tokens_per_s: of the training steps.
        rows: one row of figures for each epoch of this and the earlier stages.
    """

    epoch: int
    epochs: int
    figures: Dict[str, float]
    seconds: float
    tokens_per_s: float
    rows: List[Dict[str, Any]]


def fit(
    module: Learner,
    data: SequenceDataModule,
    config: AppConfig,
    folder: Path,
    stage: str = "fit",
    earlier: Optional[List[Dict[str, Any]]] = None,
    watch: Sequence[Any] = (),
) -> Fit:
    """Train ``module`` in place.

    With validation data, training ends after ``job.patience`` epochs without a better validation loss, and the module
    gets the weights of the best epoch, if ``callbacks`` are set so; without validation data it has those of the last
    epoch. It continues from the checkpoints of an earlier call for the same folder and stage.

    Args:
        module: fresh.
        data: with or without a validation part.
        config: the whole config.
        folder: of the run; receives ``metrics.csv`` and checkpoints.
        stage: written into every row.
        earlier: rows of earlier stages.
        watch: callbacks of Lightning, and functions that are called with each epoch's row of figures.

    Raises:
        RunError: the validation loss is never finite, or a checkpoint cannot be resumed.
    """
    place, wanted = folder / CHECKPOINTS, config.callbacks
    record, last = place / f"{stage}.done", place / f"{stage}-last.ckpt"
    listeners = [one for one in watch if not isinstance(one, Callback)]
    table, speed = EpochTable(folder / "metrics.csv", {"stage": stage}, earlier, listeners), Throughput()
    epochs, limit = passes(config.trainer, len(data.train_dataloader()))
    callbacks: List[Callback] = [
        *(one for one in watch if isinstance(one, Callback)),
        RandomState(), speed, TrainingProgress(stage, epochs, config.trainer.progress, speed)]
    best: Optional[ModelCheckpoint] = None
    if data.validation is not None and wanted.best_weights:
        best = ModelCheckpoint(place, f"{stage}-best", monitor="val_loss", save_weights_only=True,
                               enable_version_counter=False)
        callbacks.append(best)
    if data.validation is not None and wanted.early_stopping:
        patience = config.job_as(TrainJobConfig).patience
        callbacks.append(Patience("val_loss", min_delta=wanted.min_delta, patience=patience))
    if wanted.learning_rate_monitor:
        callbacks.append(LearningRateMonitor("step"))
    callbacks += [table, WholeCheckpoint(last, wanted.checkpoint_steps)]
    if record.exists():  # this stage is done
        try:
            done = Fit(**read_sealed(record, KIND, CheckpointError)[1])
            load_weights(module, config, folder, stage)
        except CheckpointError as problem:
            raise _not_whole(folder, problem) from None
        return done
    validate = config.trainer.limit_batches if data.validation is not None else 0
    trainer = make_trainer(config, folder, callbacks=callbacks, limit_val_batches=validate,
                           max_epochs=epochs, limit_train_batches=limit,
                           logger=make_logger(config, folder, stage),
                           log_every_n_steps=1 if wanted.learning_rate_monitor else None)
    start = time.perf_counter()
    try:
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, **_everything(trainer))
    except CheckpointError as problem:
        raise _not_whole(folder, problem) from None
    finally:
        finish(trainer.logger)
    seconds = time.perf_counter() - start
    epoch = trainer.current_epoch
    if data.validation is not None:
        score = table.epochs[epoch]["val_loss"] if best is None else best.best_model_score
        if score is None or not math.isfinite(score):
            which = "no epoch had a" if best is not None else "the last epoch did not have a"
            raise RunError(f"training diverged: {which} finite val_loss; lower job.learning_rate, "
                           "or check the data for huge values")
    if best is not None:
        epoch = load_weights(module, config, folder, stage)
    figures = {name: float(value) for name, value in table.epochs[epoch].items() if name.startswith(("train_", "val_"))}
    result = Fit(epoch, trainer.current_epoch, figures, seconds, speed.tokens / max(speed.seconds, 1e-9), table.rows)
    if trainer.is_global_zero:
        write_sealed(record, KIND, {}, asdict(result))
    return result


def load_weights(module: lightning.LightningModule, config: AppConfig, folder: Path, stage: str,
                 sharded: bool = True) -> int:
    """Take the weights that a stage of the training has chosen.

    Args:
        module: of that training, or, with ``sharded=False``, a fresh one.
        config: of the run; a module that FSDP has taken apart is left as it is.
        folder: of the run.
        stage: ``fit`` or ``refit``.

    Returns:
        how many epochs they have seen.
    """
    best, last = (folder / CHECKPOINTS / f"{stage}-{name}.ckpt" for name in ("best", "last"))
    checkpoint = SafeCheckpointIO().load_checkpoint(best if best.exists() else last)
    if not (sharded and config.trainer.strategy == "fsdp"):
        module.load_state_dict(checkpoint["state_dict"])
    return checkpoint["epoch"] + 1


def _not_whole(folder: Path, problem: CheckpointError) -> RunError:
    return RunError(f"run={str(folder)!r} must hold intact checkpoints; {problem}; train again")


def _everything(trainer: lightning.Trainer) -> Dict[str, Any]:
    """Newer versions of Lightning ask what may be in a checkpoint; ours holds numbers and tensors only."""
    return {"weights_only": False} if "weights_only" in inspect.signature(trainer.fit).parameters else {}

"""One call of Lightning's training loop, from a fresh module to the weights of its best epoch."""

import math
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from app.data.module import SequenceDataModule
from app.errors import RunError
from app.training.callbacks import EpochProgress, Throughput
from app.training.checkpoint_io import SafeCheckpointIO
from app.training.classifier import Classifier, Prediction, join
from app.training.history import EpochTable
from cfg.app import AppConfig

__all__ = ["Fit", "fit", "predict"]


class Fit(NamedTuple):
    """What one call of `fit` gave.

    Attributes:
        epoch: how many epochs the weights have seen.
        epochs: how many were trained.
        figures: of that epoch: ``train_loss``, and ``val_loss`` and ``val_accuracy`` where there was validation.
        seconds: wall-clock time of the whole call.
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
    module: Classifier,
    data: SequenceDataModule,
    config: AppConfig,
    folder: Path,
    stage: str = "fit",
    earlier: Optional[List[Dict[str, Any]]] = None,
) -> Fit:
    """Train ``module`` in place.

    With validation data, training ends after ``job.patience`` epochs without a better validation loss and the module
    is left with the weights of the best epoch; without, it is left with those of the last.

    Args:
        module: fresh.
        data: with or without a validation part.
        config: the whole config.
        folder: of the run; receives ``metrics.csv`` and the best checkpoint.
        stage: written into every row.
        earlier: rows of earlier stages.

    Raises:
        RunError: the validation loss is never finite.
    """
    table = EpochTable(folder / "metrics.csv", {"stage": stage}, earlier)
    speed = Throughput()
    callbacks: List[Callback] = [speed, EpochProgress(stage, config.trainer.max_epochs, config.trainer.progress)]
    best: Optional[ModelCheckpoint] = None
    if data.validation is not None:
        best = ModelCheckpoint(folder / "checkpoints", "best", monitor="val_loss", save_weights_only=True)
        callbacks += [best, EarlyStopping("val_loss", patience=config.job.patience)]
    validate = None if data.validation is not None else 0
    trainer = _trainer(config, folder, logger=table, callbacks=callbacks, limit_val_batches=validate)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    epoch = trainer.current_epoch
    if best is not None:
        if best.best_model_score is None or not math.isfinite(best.best_model_score):
            raise RunError("training diverged: no epoch had a finite val_loss; lower job.learning_rate, "
                           "or look for huge values in the data")
        checkpoint = SafeCheckpointIO().load_checkpoint(best.best_model_path)
        module.load_state_dict(checkpoint["state_dict"])
        epoch = checkpoint["epoch"] + 1
    row = table.epochs[epoch]
    figures = {name: float(row[name]) for name in ("train_loss", "val_loss", "val_accuracy") if name in row}
    return Fit(epoch, trainer.current_epoch, figures, seconds, speed.tokens / max(speed.seconds, 1e-9), table.rows)


def predict(
    module: Classifier, data: SequenceDataModule, config: AppConfig, folder: Path
) -> Tuple[Prediction, Throughput]:
    """What the module says about the test set.

    Returns:
        ``(prediction, throughput)``: a `Prediction` of all test sequences in order, and the counted `Throughput`.
    """
    speed = Throughput()
    trainer = _trainer(config, folder, logger=False, callbacks=[speed])
    parts: List[Prediction] = trainer.predict(module, data)
    return join(parts), speed


def _trainer(config: AppConfig, folder: Path, **more: Any) -> lightning.Trainer:
    trainer = config.trainer
    return lightning.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        precision=trainer.precision,
        max_epochs=trainer.max_epochs,
        gradient_clip_val=trainer.gradient_clip_val,
        deterministic=config.deterministic,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in more["callbacks"]),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[SafeCheckpointIO()],
        **more,
    )

"""The progress of a training: a bar on a terminal, otherwise lines in the log."""

import logging
import time
from typing import Any, Dict, Optional

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from encoders.training.loop.callbacks import Throughput

__all__ = ["TrainingProgress"]

log = logging.getLogger(__name__)

_FORMS = (("train_loss", "loss {:.3f}"), ("val_loss", "val {:.3f}"), ("val_accuracy", "acc {:.3f}"),
          ("val_rmse", "rmse {:.4g}"))
_PAUSE = 0.1  # seconds between two readings of the loss, which wait for a GPU
_SILENCE = 60.0  # seconds after which a log without a bar gets a line during an epoch


class TrainingProgress(lightning.Callback):
    """A bar over all steps: epoch, batch, loss, tokens/s, and the time that is left. It is removed when training ends.

    Without a terminal: a line every tenth of the epochs, and one a minute inside of long ones.

    Args:
        title: what is being trained.
        epochs: how many epochs there will be at most.
        show: False shows nothing.
        speed: counts the tokens.
        console: to draw on; by default the standard error.
    """

    def __init__(self, title: str, epochs: int, show: bool, speed: Throughput, console: Optional[Console] = None
                 ) -> None:
        self.title, self.epochs, self.show, self.speed = title, epochs, show, speed
        self._console = console
        self._bar: Optional[Progress] = None
        self._looked = 0.0
        self._begun = (0, 0.0)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._looked = time.perf_counter()
        self._begun = (self.speed.tokens, self.speed.seconds)
        console = self._console or Console(stderr=True)
        if not (self.show and console.is_terminal and trainer.is_global_zero):
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[figures]}"),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, expand=True, transient=True)
        self._bar.add_task(self.title, total=self.epochs * self._batches(trainer), figures="")
        self._bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any,
                           batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        last = batch_idx + 1 == self._batches(trainer)
        pause = _PAUSE if self._bar is not None else _SILENCE
        if not self.show or (now - self._looked < pause and not (last and self._bar is not None)):
            return
        self._looked = now
        done = trainer.current_epoch * self._batches(trainer) + batch_idx + 1
        where = f"epoch {trainer.current_epoch + 1}/{self.epochs}, batch {batch_idx + 1}/{self._batches(trainer)}"
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        said = {} if loss is None else {"train_loss": float(loss)}
        before = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        figures = self._figures({**before, **said}, trainer)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=f"{self.title}: {where}",
                             figures=figures, refresh=True)
        else:
            log.info("%s: %s  %s", self.title, where, figures)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if self._bar is None and self.show and (done == self.epochs or done % max(1, self.epochs // 10) == 0):
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            log.info("%s: epoch %d/%d  %s", self.title, done, self.epochs, self._figures(found, trainer))
            self._looked = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self._bar is not None:  # the bar is replaced by a line in the log
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            log.info("%s: %d epochs  %s", self.title, trainer.current_epoch, self._figures(found, trainer))
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        self._stop()

    def _figures(self, found: Dict[str, float], trainer: lightning.Trainer) -> str:
        parts = [form.format(found[name]) for name, form in _FORMS if name in found]
        seconds = self.speed.seconds - self._begun[1]
        if seconds > 0:
            parts.append(f"{(self.speed.tokens - self._begun[0]) * trainer.world_size / seconds:,.0f} tokens/s")
        return "  ".join(parts)

    @staticmethod
    def _batches(trainer: lightning.Trainer) -> int:
        return max(1, int(trainer.num_training_batches))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

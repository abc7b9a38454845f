"""Lightning callbacks: the progress bar, and how fast it goes."""

import logging
import time
from typing import Any, Dict, Optional

import lightning
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from encoders.training.data.batches import Batch

__all__ = ["EpochProgress", "Throughput"]

log = logging.getLogger(__name__)


class Throughput(lightning.Callback):
    """Counts this process's real tokens (pads left out) and the seconds of steps, loading included, validation not.

    Attributes:
        tokens, seconds: of all training epochs, those before a restart included.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._start = 0.0
        self._before = (0, 0.0)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """A restart inside an epoch does not start one."""
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._before = (self.tokens, self.seconds)
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        now = time.perf_counter()
        self.seconds += now - self._start
        self.tokens += int(batch.lengths.sum())
        self._start = now

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        tokens, seconds = self._before
        rate = (self.tokens - tokens) * trainer.world_size / max(self.seconds - seconds, 1e-9)
        module.log_dict({"learning_rate": trainer.optimizers[0].param_groups[0]["lr"], "tokens_per_s": rate})

    def state_dict(self) -> Dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]


class EpochProgress(lightning.Callback):
    """A bar over the epochs on a terminal; elsewhere a log line every tenth of the way.

    Args:
        title: what is being trained.
        epochs: how many epochs there will be at most.
        show: False shows nothing.
    """

    def __init__(self, title: str, epochs: int, show: bool) -> None:
        self.title, self.epochs, self.show = title, epochs, show
        self._bar: Optional[Progress] = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        console = Console(stderr=True)
        if self.show and console.is_terminal and trainer.is_global_zero:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
                       TextColumn("epochs  {task.fields[figures]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, expand=True)
            self._bar.add_task(self.title, total=self.epochs, figures="")
            self._bar.start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        done = trainer.current_epoch + 1
        forms = (("train_loss", "loss {:.3f}"), ("val_loss", "val {:.3f}"), ("val_accuracy", "acc {:.3f}"),
                 ("val_rmse", "rmse {:.4g}"), ("tokens_per_s", "{:,.0f} tokens/s"))
        metrics = trainer.callback_metrics
        figures = "  ".join(form.format(float(metrics[key])) for key, form in forms if key in metrics)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, figures=figures)
        elif self.show and (done == self.epochs or done % max(1, self.epochs // 10) == 0):
            log.info("%s: epoch %d/%d  %s", self.title, done, self.epochs, figures)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

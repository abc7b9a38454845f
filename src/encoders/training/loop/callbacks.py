"""The speed of a training."""

import time
from typing import Any, Dict

import lightning

from encoders.training.data.batches import Batch

__all__ = ["Throughput"]


class Throughput(lightning.Callback):
    """Counts this process's real tokens (without padding) and the seconds of steps, loading included, validation not.

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

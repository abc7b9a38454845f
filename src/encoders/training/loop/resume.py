"""Exact continuation of an interrupted run: checkpoints with everything that changes."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

__all__ = ["Patience", "RandomState", "WholeCheckpoint"]


class RandomState(lightning.Callback):
    """Puts the states of the random generators into checkpoints, one set for each process."""

    def __init__(self) -> None:
        self._found: Optional[List[Dict[str, Any]]] = None

    def state_dict(self) -> Dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        own = {"cpu": torch.get_rng_state(), "cuda": cuda}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"processes": [own]}
        everyone: List[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, own)
        return {"processes": everyone}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self._found = state_dict["processes"]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Restored here and not earlier, because Lightning draws random numbers before the first step after a
        restart."""
        if self._found is None:
            return
        own = self._found[trainer.global_rank % len(self._found)]
        torch.set_rng_state(own["cpu"])
        if own["cuda"] and len(own["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(own["cuda"])
        self._found = None
        trainer.datamodule.restarting = False


class Patience(EarlyStopping):
    """Early stopping at the same epoch with and without a restart."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, module)
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class WholeCheckpoint(Checkpoint):
    """Writes a checkpoint after every epoch, which replaces the one before.

    Args:
        path: the file; a reader sees the complete old file or the complete new one.
        steps: also write it each time after this number of steps of an epoch; None for the ends of epochs only.
    """

    def __init__(self, path: Path, steps: Optional[int] = None) -> None:
        super().__init__()
        self.path, self.steps = path, steps
        self._loss: Optional[torch.Tensor] = None

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        done = batch_idx + 1
        # Not while gradients are accumulated: a checkpoint does not contain gradients.
        every = None if self.steps is None else self.steps * trainer.accumulate_grad_batches
        if every is not None and done % every == 0 and done < trainer.num_training_batches:
            self._save(trainer, done)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._save(trainer, 0)

    def _save(self, trainer: Any, done: int) -> None:
        trainer.datamodule.inside = done
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Dict[str, Any]) -> None:
        if not trainer.datamodule.inside:
            return
        # Lightning calls a step complete only after its callbacks have been called, and would take it twice.
        loop = checkpoint["loops"]["fit_loop"]
        for count in (loop["epoch_loop.batch_progress"]["total"], loop["epoch_loop.batch_progress"]["current"]):
            count["completed"] = count["processed"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
        checkpoint["loss_so_far"] = module.train_loss.so_far(trainer.world_size)

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Dict[str, Any]) -> None:
        self._loss = checkpoint.get("loss_so_far")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self._loss is not None and trainer.is_global_zero:  # it is the sum of all processes
            module.train_loss.go_on(self._loss)
        self._loss = None

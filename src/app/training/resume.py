"""What makes a run that was cut off go on as if it had not been: after every epoch a checkpoint with all that moves."""

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

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Here and not earlier, because what Lightning does before the first epoch after a restart draws as well."""
        if self._found is None:
            return
        own = self._found[trainer.global_rank % len(self._found)]
        torch.set_rng_state(own["cpu"])
        if own["cuda"] and len(own["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(own["cuda"])
        self._found = None


class Patience(EarlyStopping):
    """Early stopping that a restart does not grant one more epoch."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, module)
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class WholeCheckpoint(Checkpoint):
    """Writes everything that a restart needs after every epoch, over the file of the epoch before.

    Args:
        path: of the file; a reader sees the old one or the new one, never half of one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self.path)

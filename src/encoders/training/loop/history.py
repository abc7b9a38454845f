"""One row of figures for each epoch, in ``metrics.csv``."""

import csv
import io
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import lightning
from lightning.pytorch.callbacks import Checkpoint

from myfla.utils.atomic import write_atomic

__all__ = ["EpochTable"]


class EpochTable(Checkpoint):
    """Keeps one row of training and validation figures for each epoch, and stores them in checkpoints.

    Lightning's own CSV logger writes two half-empty rows. This class is a `Checkpoint` callback, because these are
    called when all figures of the epoch are known.

    Args:
        path: the CSV file; written after every epoch, so that an interrupted run has its figures.
        constants: columns with one value in every row, e.g. ``{"stage": "fit"}``.
        rows: rows of an earlier stage to continue from.
        listeners: called with each new row.
    """

    def __init__(self, path: Path, constants: Dict[str, Any], rows: Optional[List[Dict[str, Any]]] = None,
                 listeners: Sequence[Callable[[Dict[str, Any]], Any]] = ()) -> None:
        super().__init__()
        self.path, self.constants = path, constants
        self.earlier, self.listeners = list(rows or []), listeners
        self.epochs: Dict[int, Dict[str, Any]] = {}

    @property
    def rows(self) -> List[Dict[str, Any]]:
        """All rows so far, earlier stages first."""
        return self.earlier + [self.epochs[epoch] for epoch in sorted(self.epochs)]

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs[epoch] = {**self.constants, "epoch": epoch, **figures}
        if trainer.is_global_zero:
            self.save()
        for listener in self.listeners:
            listener(dict(self.epochs[epoch]))

    def save(self) -> None:
        """Write the file."""
        rows = self.rows
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode("utf-8"))

    def state_dict(self) -> Dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]

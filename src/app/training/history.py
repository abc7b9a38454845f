"""One row of figures for each epoch, in ``metrics.csv``."""

import csv
from pathlib import Path
from typing import Any, Dict, List, Optional

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["EpochTable"]


class EpochTable(Logger):
    """A Lightning logger that keeps one row an epoch, training and validation side by side.

    Lightning's own CSV logger writes them as two half-empty rows.

    Args:
        path: the CSV file; written anew after every epoch, so that a run that is cut off leaves its record.
        constants: columns with one value in every row, e.g. ``{"stage": "fit"}``.
        rows: rows of an earlier stage to go on from.
    """

    def __init__(self, path: Path, constants: Dict[str, Any], rows: Optional[List[Dict[str, Any]]] = None) -> None:
        super().__init__()
        self.path, self.constants = path, constants
        self.earlier = list(rows or [])
        self.epochs: Dict[int, Dict[str, Any]] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def rows(self) -> List[Dict[str, Any]]:
        """All rows so far, earlier stages first."""
        return self.earlier + [self.epochs[epoch] for epoch in sorted(self.epochs)]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole config."""

    @rank_zero_only
    def log_metrics(self, metrics: Dict[str, float], step: Optional[int] = None) -> None:
        epoch = int(metrics.get("epoch", 0)) + 1
        row = self.epochs.setdefault(epoch, {**self.constants, "epoch": epoch})
        row.update({name: value for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def save(self) -> None:
        rows = self.rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not rows:
            return
        with open(self.path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

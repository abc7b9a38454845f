"""Figures of a task over many batches, on one process or several."""

import math
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from encoders.training.data.batches import Batch
from encoders.training.tasks.mean import WeightedMean
from encoders.training.tasks.task import Task, Values

__all__ = ["Scores"]

_CONFUSION = 200  # largest number of classes with a confusion matrix


class Scores(nn.Module):
    """Counts as batches come; on several processes, each counts its own and `compute` has the sum.

    Figures: ``loss``; for classes ``accuracy`` (over all targets), per step also ``sequence_accuracy`` (every step
    right) and ``last_accuracy`` (the last one); for values ``rmse`` and ``mae``, in the data's units. With ``full``
    also ``macro_f1`` (mean over the classes), ``perplexity`` of tokens, ``r2``, and the confusion matrix.

    Args:
        task: the task.
        full: also compute the figures that are only needed at the end.
        together: compute figures over all processes, all of which must then call `compute`; otherwise for each alone.
    """

    def __init__(self, task: Task, full: bool = False, together: bool = True) -> None:
        super().__init__()
        how: Dict[str, Any] = {"sync_on_compute": together}
        spec, self.full = task.spec, full
        self._task = [task]  # in a list, so that it is no part of this module
        self.loss = WeightedMean(**how)
        named = full and spec.names is not None
        if spec.kind == "classes":
            several = spec.outputs > 1
            self.accuracy = MulticlassAccuracy(spec.outputs, average="micro", **how) if several else WeightedMean(**how)
            self.f1 = MulticlassF1Score(spec.outputs, average="macro", **how) if named and several else None
            small = named and 1 < spec.outputs <= _CONFUSION
            self.matrix = MulticlassConfusionMatrix(spec.outputs, **how) if small else None
            self.sequence = WeightedMean(**how) if spec.per_step else None
            self.last = WeightedMean(**how) if spec.per_step else None
        else:
            self.squares, self.absolute = MeanSquaredError(**how), MeanAbsoluteError(**how)
            self.r2 = R2Score(**how) if full else None
            self.count = 0

    def update(self, outputs: Tensor, batch: Batch, loss: Optional[Tensor] = None,
               weight: Optional[Tensor] = None) -> None:
        """Add one batch.

        Args:
            outputs: of the task.
            batch: what they are outputs for.
            loss, weight: as from `Task.loss`, if they are known already.
        """
        task, targets = self._task[0], batch.targets
        if loss is None or weight is None:
            loss, weight = task.loss(outputs, targets)
        if not bool(weight > 0):
            return
        self.loss.update(loss.detach(), weight)
        valid = task.has_target(targets)
        if isinstance(task, Values):
            self._values(task, task.predict(outputs.detach())["value"][valid], targets[valid])
        else:
            self._classes(outputs.detach(), targets, valid, batch)

    def compute(self) -> Dict[str, float]:
        """The figures; empty if no batch had a target."""
        loss = float(self.loss.compute())
        if math.isnan(loss) and float(self.loss.weight) == 0:
            return {}
        found = {"loss": loss}
        if self._task[0].spec.kind == "classes":
            parts = {"accuracy": self.accuracy, "sequence_accuracy": self.sequence, "last_accuracy": self.last,
                     "macro_f1": self.f1}
            found.update({name: float(part.compute()) for name, part in parts.items() if part is not None})
            if self.full and self._task[0].spec.names is None:
                found["perplexity"] = math.exp(min(loss, 700.0))
        else:
            found.update(rmse=math.sqrt(float(self.squares.compute())), mae=float(self.absolute.compute()))
            if self.r2 is not None and self.count > 1:
                found["r2"] = float(self.r2.compute())
        return found

    def confusion(self) -> Optional[List[List[int]]]:
        """``[classes][classes]``, true class by predicted class; None for values, tokens and very many classes."""
        matrix = getattr(self, "matrix", None)
        return None if matrix is None else matrix.compute().tolist()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.count = 0
        for part in self.children():
            if isinstance(part, Metric):  # as all are
                part.reset()

    def _classes(self, outputs: Tensor, targets: Tensor, valid: Tensor, batch: Batch) -> None:
        predicted = outputs.argmax(-1)
        right = (predicted == targets) & valid
        for part in (self.accuracy, self.f1, self.matrix):
            if isinstance(part, WeightedMean):
                part.update(right[valid].float())
            elif part is not None:
                part.update(predicted[valid], targets[valid])
        if self.sequence is None or self.last is None:
            return
        rows, count = batch.rows(), len(batch.lengths)
        wrong = torch.zeros(count, device=rows.device).index_add(0, rows[valid], (~right[valid]).float())
        steps = torch.arange(rows.numel(), device=rows.device).view(rows.shape)
        place = torch.full((count,), -1, device=rows.device)
        place = place.scatter_reduce(0, rows[valid], steps[valid], "amax", include_self=True)
        seen = place >= 0
        self.sequence.update((wrong[seen] == 0).float())
        self.last.update(right.flatten()[place[seen]].float())

    def _values(self, task: Values, values: Tensor, targets: Tensor) -> None:
        # Shifting both changes no figure, and float32 cannot represent 1.7e9 +- 3.
        values, targets = (values - task.target_mean).float(), (targets - task.target_mean).float()
        self.count += len(values)
        for part in (self.squares, self.absolute, self.r2):
            if part is not None:
                part.update(*((values.flatten(), targets.flatten()) if part is not self.r2 else (values, targets)))

"""Scores of each class, and the test sequences with the worst predictions."""

from typing import Any, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from encoders.training.data.identity import Identity
from encoders.training.tasks.predict import Prediction
from encoders.training.tasks.spec import TaskSpec

__all__ = ["ClassScore", "class_scores", "worst_cases"]

WORST = 10
"""Number of cases that are listed."""


class ClassScore(NamedTuple):
    """One class: how many test targets it has, recall, precision, and the harmonic mean of the two."""

    name: str
    size: int
    recall: float
    precision: float
    f1: float


def class_scores(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> List[ClassScore]:
    """Scores of every class, the lowest F1 first.

    Args:
        confusion: ``[classes][classes]``, true by predicted class.
        names: of the classes.

    Example:
        >>> [score[:3] for score in class_scores([[3, 1], [0, 2]], ["no", "yes"])]
        [('yes', 2, 1.0), ('no', 4, 0.75)]
    """
    matrix = torch.tensor(confusion, dtype=torch.float64)
    right, true, said = matrix.diag(), matrix.sum(1), matrix.sum(0)
    recall, precision = right / true.clamp(min=1), right / said.clamp(min=1)
    f1 = 2 * right / (true + said).clamp(min=1)
    rows = [ClassScore(str(name), int(count), *parts) for name, count, *parts in
            zip(names, true.tolist(), recall.tolist(), precision.tolist(), f1.tolist())]
    return sorted((row for row in rows if row.size), key=lambda row: row.f1)


def worst_cases(task: TaskSpec, prediction: Prediction, ids: Identity) -> Tuple[List[str], List[List[Any]]]:
    """A table of the test sequences with the worst predictions: columns and rows.

    For classes, these are the wrong predictions with the highest probabilities; for values, the largest errors in
    standard deviations of the true values; with a target for each step, the sequences with the fewest correct steps or
    the largest errors.

    Args:
        task: of the run.
        prediction: of a test set.
        ids: of its sequences.
    """
    targets = prediction.targets
    if task.kind == "classes":
        said, sure = prediction.columns["predicted"], prediction.columns["probability"]
        known, wrong = targets >= 0, said != targets
        if task.per_step:
            share = _by_sequence((~wrong).double(), known, prediction.lengths)
            order = _worst(-share, share < 1)
            return [*ids.columns, "steps right"], [[*ids.row(i), f"{share[i]:.1%}"] for i in order]
        order = _worst(sure.double(), known & wrong)
        rows = [[*ids.row(i), task.name(int(targets[i])), task.name(int(said[i])), f"{float(sure[i]):.1%}"]
                for i in order]
        return [*ids.columns, "true", "predicted", "probability"], rows
    values, known = prediction.columns["value"].double(), ~targets.isnan().any(-1)
    spread = targets[known].double().std(0, unbiased=False).clamp(min=1e-300) if bool(known.any()) else torch.ones(1)
    missed = ((values - targets.double()) / spread).abs().nan_to_num(0.0).amax(-1)
    if task.per_step:
        mean = _by_sequence(missed, known, prediction.lengths)
        order = _worst(mean, mean > 0)
        return [*ids.columns, "mean error / spread"], [[*ids.row(i), f"{mean[i]:.3g}"] for i in order]
    order = _worst(missed, known & (missed > 0))
    rows = [[*ids.row(i), _shown(targets[i]), _shown(values[i]), f"{missed[i]:.3g}"] for i in order]
    return [*ids.columns, "true", "predicted", "error / spread"], rows


def _worst(badness: Tensor, counts: Tensor) -> List[int]:
    places = counts.nonzero().flatten()
    order = badness[places].argsort(descending=True, stable=True)
    return places[order][:WORST].tolist()


def _by_sequence(values: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the known steps of each sequence; NaN where there is none."""
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    zero = torch.zeros(len(lengths), dtype=torch.float64)
    total = zero.index_add(0, rows[known], values[known].double())
    return total / zero.index_add(0, rows[known], torch.ones(int(known.sum()), dtype=torch.float64))


def _shown(values: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in values.tolist()[:4])

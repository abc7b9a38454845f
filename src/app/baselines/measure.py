"""Simple methods, measured on the split that a run was trained and tested on."""

import logging
import math
import warnings
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from app.baselines.linear import logistic_regression, ridge_regression
from app.baselines.rocket import find_rocket, padded
from app.baselines.summary import summaries
from encoders.training.data.prepared import Prepared
from encoders.training.tasks.spec import TaskSpec

__all__ = ["FIGURE", "better", "measure_baselines"]

log = logging.getLogger(__name__)

FIGURE = {"classes": ("accuracy", "accuracy"), "values": ("rmse", "RMSE")}
"""For each kind of target the figure by which methods are compared, and its label."""

MOST_SEQUENCES = 5000
"""Largest number of training sequences that is read; of more, every n-th."""
MOST_FEATURES = 3000
MOST_VALUES = 20_000_000
"""Largest number of values of training and test series together, padded, for MiniRocket."""


def measure_baselines(train: Prepared, test: Prepared, task: TaskSpec,
                      vocab_size: Optional[int]) -> Dict[str, Dict[str, float]]:
    """Figures of simple methods on the test set, by the name of the method.

    The methods are the most frequent class, or the mean; with one target for each sequence also a linear model of
    `summaries`; and for features MiniRocket, if aeon or sktime is installed.

    Args:
        train, test: the data as the encoder gets them.
        task: the task of the run.
        vocab_size: the number of token ids; None for features.
    """
    if task.shifts and vocab_size is None:
        return {"the present step again": _persistence(test)} if len(test) else {}
    chosen = range(0, len(train), -(-len(train) // MOST_SEQUENCES))
    y, truth = _targets(train, chosen, task), _targets(test, range(len(test)), task)
    if not len(y) or not len(truth):
        return {}
    constant = y.mode().values if task.kind == "classes" else y.mean(0)
    name = "the most frequent class" if task.kind == "classes" else "the mean"
    found = {name: _figures(constant.expand_as(truth), truth, task)}
    if task.per_step:
        return found
    known, known_test = _known(train, chosen, task), _known(test, range(len(test)), task)
    linear = _linear(train, test, known, known_test, y, task, vocab_size)
    if linear is not None:
        named = "logistic regression" if task.kind == "classes" else "ridge regression"
        found[f"{named} on summary features"] = _figures(linear, truth, task)
    if vocab_size is None:
        said = _rocket(train, test, known, known_test, y, task)
        if said is not None:
            found["MiniRocket"] = _figures(said, truth, task)
    return found


def better(found: Dict[str, Dict[str, float]], own: float, kind: str) -> List[Tuple[str, float]]:
    """The methods that are better than ``own`` by more than float32 rounding, the best first.

    Example:
        >>> better({"a": {"accuracy": 0.5}, "b": {"accuracy": 0.9}, "c": {"accuracy": 0.8}}, 0.7, "classes")
        [('b', 0.9), ('c', 0.8)]
    """
    sign, margin = -1 if kind == "classes" else 1, 1e-6 * abs(own)
    ahead = [(name, figures[FIGURE[kind][0]]) for name, figures in found.items()
             if sign * figures[FIGURE[kind][0]] < sign * own - margin]
    return sorted(ahead, key=lambda one: sign * one[1])


def _targets(data: Prepared, places: Any, task: TaskSpec) -> Tensor:
    """``[n]`` classes or ``[n, K]`` float64 of all known targets."""
    rows = [data[i].target for i in places] if task.shifts else [data.data.targets[i] for i in places]
    flat = torch.cat([row.reshape(-1) if task.kind == "classes" else row.reshape(-1, task.outputs) for row in rows])
    return flat[flat >= 0] if task.kind == "classes" else flat[~flat.isnan().any(1)].double()


def _known(data: Prepared, places: Any, task: TaskSpec) -> List[int]:
    targets = data.data.targets
    if task.kind == "classes":
        return [i for i in places if int(targets[i]) >= 0]
    return [i for i in places if not bool(targets[i].isnan().any())]


def _figures(said: Tensor, truth: Tensor, task: TaskSpec) -> Dict[str, float]:
    if task.kind == "classes":
        return {"accuracy": float((said == truth).double().mean())}
    missed = said - truth
    return {"rmse": math.sqrt(float(missed.square().mean())), "mae": float(missed.abs().mean())}


def _persistence(test: Prepared) -> Dict[str, float]:
    """Predict each step of the features as the one before it, on the scale of the predictions."""
    missed = torch.cat([(test[i].x - test[i].target).double().flatten() for i in range(len(test))])
    return {"rmse": math.sqrt(float(missed.square().mean())), "mae": float(missed.abs().mean())}


def _linear(train: Prepared, test: Prepared, known: List[int], known_test: List[int], y: Tensor, task: TaskSpec,
            vocab_size: Optional[int]) -> Optional[Tensor]:
    x = summaries(1, lambda i: train[known[i]].x, vocab_size or 0)
    if x.shape[1] > MOST_FEATURES:
        return None
    x = summaries(len(known), lambda i: train[known[i]].x, vocab_size or 0)
    other = summaries(len(known_test), lambda i: test[known_test[i]].x, vocab_size or 0)
    if task.kind == "classes":
        return logistic_regression(x, y, other, task.outputs)
    return ridge_regression(x, y, other)


def _rocket(train: Prepared, test: Prepared, known: List[int], known_test: List[int], y: Tensor,
            task: TaskSpec) -> Optional[Tensor]:
    longest = max(train.lengths[i] for i in known)
    channels = train[known[0]].x.shape[1]
    if longest * channels * (len(known) + len(known_test)) > MOST_VALUES:
        return None
    if task.kind == "values" and task.outputs > 1:
        return None
    rocket = find_rocket(task.kind == "values")
    if rocket is None:
        return None
    x = padded(len(known), lambda i: train[known[i]].x, longest)
    other = padded(len(known_test), lambda i: test[known_test[i]].x, longest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = torch.from_numpy(rocket(x, y.flatten().numpy(), other))
    return said.long() if task.kind == "classes" else said.double()[:, None]

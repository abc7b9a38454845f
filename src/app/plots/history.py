"""Figures of a training over time: losses, a figure of the validation set, the learning rate."""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from app.plots.style import ACCENT, GREY, MUTED, SECOND, drawing, plain_numbers, within

__all__ = ["judged", "loss_figure", "rate_figure"]

_SHARES = ("val_accuracy", "val_sequence_accuracy", "val_last_accuracy")
_LARGEST = 700.0  # largest loss whose exponential is finite


@drawing
def loss_figure(rows: Sequence[Dict[str, Any]], best_epoch: Optional[int] = None) -> Figure:
    """Training and validation loss over the epochs.

    Args:
        rows: those of ``metrics.csv`` for one stage; a figure that a row lacks is left out of its curve.
        best_epoch: marked with a line.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    losses = [value for name in ("train_loss", "val_loss") for _, value in _points(rows, name)]
    for name, label, colour in (("train_loss", "training", GREY), ("val_loss", "validation", ACCENT)):
        _line(axes, _points(rows, name), colour, label)
    if losses and min(losses) > 0 and max(losses) > 4 * min(losses):
        axes.set_yscale("log")
        plain_numbers(axes.yaxis, minor=max(losses) < 100 * min(losses))
    elif losses and min(losses) >= 0:
        within(axes, low=0)
    axes.set_ylabel("loss")
    _mark(axes, best_epoch, f"chosen epoch, {best_epoch}")
    axes.legend(frameon=False, labelcolor=MUTED)
    _epochs(axes)
    return figure


@drawing
def rate_figure(rows: Sequence[Dict[str, Any]], best_epoch: Optional[int] = None, tokens: bool = False) -> Figure:
    """The validation figure, where there is one, and the learning rate; arguments as for `loss_figure`.

    Args:
        tokens: the task is to predict the next token: the figure is the perplexity.
    """
    label, points = judged(rows, tokens)
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots(2 if points else 1, 1, sharex=True, squeeze=False)[:, 0]
    if points:
        _line(axes[0], points, ACCENT, "")
        axes[0].set_ylabel(f"validation\n{label}")
        if label == "accuracy, %":
            within(axes[0], low=0, high=100)
        else:
            within(axes[0], low=0)
    _line(axes[-1], _points(rows, "learning_rate"), GREY, "")
    axes[-1].set_ylim(bottom=0)
    plain_numbers(axes[-1].yaxis)
    axes[-1].set_ylabel("learning rate")
    for part in axes:
        _mark(part, best_epoch, None)
    _epochs(axes[-1])
    figure.align_ylabels()
    return figure


def judged(rows: Sequence[Dict[str, Any]], tokens: bool = False) -> Tuple[str, List[Tuple[int, float]]]:
    """The main figure of the validation set, with its points: perplexity for tokens, accuracy for classes, or RMSE.

    Example:
        >>> judged([{"epoch": 1, "val_rmse": 0.5}])
        ('RMSE', [(1, 0.5)])
    """
    losses = _points(rows, "val_loss")
    if tokens and losses:
        return "perplexity", [(epoch, math.exp(min(loss, _LARGEST))) for epoch, loss in losses]
    accuracy = next((name for name in _SHARES if _points(rows, name)), None)
    if accuracy:
        return "accuracy, %", [(epoch, 100 * value) for epoch, value in _points(rows, accuracy)]
    return "RMSE", _points(rows, "val_rmse")


def _mark(axes: Any, epoch: Optional[int], label: Optional[str]) -> None:
    if epoch is not None:
        axes.axvline(epoch, color=SECOND, linestyle=(0, (4, 3)), linewidth=1.2, label=label)


def _epochs(axes: Any) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(rows: Sequence[Dict[str, Any]], name: str) -> List[Tuple[int, float]]:
    return [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name) not in (None, "")]


def _line(axes: Any, points: Sequence[Tuple[int, float]], colour: str, label: str) -> None:
    if points:
        marker = "o" if len(points) < 4 else None
        axes.plot(*zip(*points), color=colour, label=label or None, marker=marker, markersize=4)

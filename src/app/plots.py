"""Pictures of a run, as PNG files."""

from pathlib import Path
from typing import Any, Dict, List, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["plot_confusion", "plot_history"]

BLUE, ORANGE, GREY = "#1f5fa8", "#d9822b", "#8a8f98"


def plot_history(rows: Sequence[Dict[str, Any]], best_epoch: int, path: Path) -> None:
    """Training and validation loss over the epochs, validation accuracy below.

    Args:
        rows: those of ``metrics.csv`` for one stage; a figure that a row lacks is left out of its curve.
        best_epoch: marked with a line.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name, label, colour in (("train_loss", "training", GREY), ("val_loss", "validation", BLUE)):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        if points:
            top.plot(*zip(*points), label=label, color=colour, linewidth=2)
    points = [(row["epoch"], 100 * row["val_accuracy"]) for row in rows if "val_accuracy" in row]
    if points:
        bottom.plot(*zip(*points), color=BLUE, linewidth=2)
    for axes in (top, bottom):
        axes.axvline(best_epoch, color=ORANGE, linestyle="--", linewidth=1.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    top.plot([], [], color=ORANGE, linestyle="--", label=f"chosen epoch, {best_epoch}")
    top.set_ylabel("loss")
    top.set_yscale("log")
    top.legend(frameon=False)
    bottom.set_ylabel("validation\naccuracy, %")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def plot_confusion(matrix: List[List[int]], classes: Sequence[str], title: str, path: Path) -> None:
    """A confusion matrix: one row for each true class, counts in the cells, colour by share of the row.

    Args:
        matrix: ``[classes][classes]``, true class by predicted class.
        classes: their names.
        title: above the picture.
        path: the PNG file to write.
    """
    size = len(classes)
    side = min(14.0, 2.5 + 0.5 * size)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= 30:
        for i, row in enumerate(matrix):
            for j, count in enumerate(row):
                colour = "white" if shares[i][j] > 0.5 else "black"
                if count:
                    axes.text(j, i, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(size), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(range(size), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=144)

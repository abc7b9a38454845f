"""How good predictions are: a confusion matrix for classes, residuals for values."""

from typing import List, Optional, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from app.plots.style import ACCENT, INK, MUTED, SECOND, SURFACE, clean, drawing, label_ticks, no_frame, within

__all__ = ["MOST_CLASSES", "confusion_figure", "place_figure", "residual_figure"]

MOST_CLASSES = 30
"""Up to this number of classes, a matrix shows counts and names."""

_MOST_POINTS, _MOST_VALUES, _MOST_PLACES = 3000, 4, 60


@drawing
def confusion_figure(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """A confusion matrix: one row for each true class, counts in the cells, colour by share of the row.

    Args:
        matrix: ``[classes][classes]``, true class by predicted class.
        classes: their names.
    """
    size = len(classes)
    figure = Figure(figsize=(max(3.4, min(9.0, 1.2 + 0.42 * size)),) * 2, layout="constrained")
    axes = figure.subplots()
    counts = np.asarray(matrix, dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    axes.grid(False)
    no_frame(axes)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if size > MOST_CLASSES:
        picture = np.empty((size, size, 4))
        picture[...] = (*to_rgb(ACCENT), 0)
        picture[..., 3] = shares
        axes.imshow(picture, interpolation="nearest")
        return figure
    for i in range(size):
        for j in range(size):
            share = shares[i, j]
            box = dict(facecolor=ACCENT, alpha=0.06 + 0.9 * share) if share else dict(facecolor=MUTED, alpha=0.05)
            axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, linewidth=0, **box))
            if counts[i, j]:
                axes.text(j, i, f"{int(counts[i, j])}", ha="center", va="center", fontsize=9,
                          color=SURFACE if share > 0.55 else INK)
    long = max(map(len, map(str, classes))) > 3
    label_ticks(axes.xaxis, range(size), classes, rotation=90 if long else 0)
    label_ticks(axes.yaxis, range(size), classes)
    return figure


@drawing
def residual_figure(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Predicted against true values, and how the errors are spread.

    Args:
        truth, predicted: ``[N, values]``; of very many, every n-th is drawn, and of the values the first four.
        names: of the values.
    """
    shown = min(len(names), _MOST_VALUES)
    figure = Figure(figsize=(5.2, 2.6 * shown), layout="constrained")
    grid = figure.subplots(shown, 2, squeeze=False, width_ratios=(3, 2))
    for i in range(shown):
        left, right = grid[i]
        true, said = truth[:, i], predicted[:, i]
        step = max(1, len(true) // _MOST_POINTS)
        low, high = _range(np.concatenate([true, said]))
        left.plot([low, high], [low, high], color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
        left.scatter(true[::step], said[::step], s=11, color=ACCENT, alpha=0.55, linewidth=0)
        left.set_xlim(low, high)
        left.set_ylim(low, high)
        left.set_xlabel(f"true {clean(names[i], 18)}")
        left.set_ylabel(f"predicted {clean(names[i], 16)}")
        right.hist(said - true, bins=min(40, max(10, len(true) // 8)), color=ACCENT, alpha=0.8)
        right.axvline(0, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
        right.set_xlabel("predicted - true")
        right.grid(False, axis="x")
        right.set_yticks([])
        right.xaxis.set_major_locator(MaxNLocator(4))
    return figure


@drawing
def place_figure(places: np.ndarray, figures: np.ndarray, label: str, high: Optional[float] = None) -> Figure:
    """The mean of a figure by the number of the step; if there are many steps, neighbours are joined.

    Args:
        places: ``[N]``, the number of each step.
        figures: ``[N]``, of each step, at least 0.
        label: of the figure.
        high: that it cannot be above.
    """
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    edges = np.unique(np.linspace(0, places.max() + 1, min(_MOST_PLACES, int(places.max()) + 1) + 1).round())
    bins = np.digitize(places, edges) - 1
    counts = np.bincount(bins, minlength=len(edges) - 1)
    means = np.bincount(bins, figures, len(edges) - 1)[counts > 0] / counts[counts > 0]
    centres = ((edges[:-1] + edges[1:] - 1) / 2)[counts > 0]
    axes.plot(centres, means, color=ACCENT, marker="o" if len(centres) < 20 else None, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    within(axes, low=0, high=high)
    return figure


def _range(values: np.ndarray) -> List[float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    return [low - margin, high + margin]

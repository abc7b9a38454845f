"""Embeddings in two dimensions."""

from functools import partial
from typing import Optional, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from app.plots.style import ACCENT, SECOND, categories, clean, drawing

__all__ = ["MARKS", "MOST_NAMED", "projection_figure"]

MARKS = (("o", "\u25cf"), ("s", "\u25a0"), ("^", "\u25b2"), ("D", "\u25c6"))
"""Markers for matplotlib and as characters; each is used for ten classes."""

MOST_NAMED = 20
"""Up to this number of classes, colours are explained by name."""

_MOST_POINTS = 3000


@drawing
def projection_figure(
    points: np.ndarray, shares: Sequence[float], classes: Optional[np.ndarray] = None,
    values: Optional[np.ndarray] = None, value_name: str = "",
) -> Figure:
    """Points in the plane, coloured by class or by value.

    Args:
        points: ``[N, 2]``; of very many, every n-th is drawn.
        shares: of the variance, for both axes.
        classes: ``[N]`` integers, -1 where there is none.
        values: ``[N]``, in place of classes.
        value_name: what they are.
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    step = max(1, -(-len(points) // _MOST_POINTS))
    points = points[::step]
    dots = partial(axes.scatter, s=18, alpha=0.75, linewidth=0)
    if values is not None:
        ramp = LinearSegmentedColormap.from_list("ramp", [ACCENT, "#9aa3b5", SECOND])
        drawn = dots(points[:, 0], points[:, 1], c=values[::step], cmap=ramp)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(clean(value_name))
    elif classes is not None:
        classes = classes[::step]
        colours = categories(int(classes.max(initial=0)) + 1)
        for i, colour in enumerate(colours):
            mine = classes == i
            if mine.any():
                mark, _ = MARKS[i // 10 % len(MARKS)]
                dots(points[mine, 0], points[mine, 1], color=colour, marker=mark)
    else:
        dots(points[:, 0], points[:, 1], color=ACCENT)
    for set_label, name, share in ((axes.set_xlabel, "first", shares[0]), (axes.set_ylabel, "second", shares[1])):
        set_label(f"{name} principal component, {100 * share:.0f} % of the variance")
    return figure

"""The effect of a setting: a figure of every job of a sweep by the value of the setting."""

from typing import List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure

from app.plots.style import ACCENT, SECOND, clean, drawing, label_ticks, plain_numbers, within

__all__ = ["MOST_VALUES", "effect_figure"]

MOST_VALUES = 10
"""A setting with more numbers than this gets a numeric axis."""


@drawing
def effect_figure(name: str, values: Sequence[str], panels: Sequence[Tuple[str, Sequence[Optional[float]]]]) -> Figure:
    """A point for each job; for few values also their means.

    Args:
        name: of the setting.
        values: of each job, as they were written.
        panels: ``(label, figure of each job or None)``, one below the other.
    """
    figure = Figure(figsize=(5.2, 0.5 + 2.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    numbers = _numbers(values)
    known = _in_order(values, numbers)
    scattered = numbers if len(known) > MOST_VALUES else None
    for part, (label, figures) in zip(axes, panels):
        good = [i for i, value in enumerate(figures) if value is not None and np.isfinite(value)]
        y = [figures[i] for i in good]
        if scattered is not None:
            part.scatter([scattered[i] for i in good], y, s=22, color=ACCENT, alpha=0.7, linewidth=0)
        else:
            x = [known.index(values[i]) for i in good]
            part.scatter(np.add(x, _aside(x)) if x else [], y, s=22, color=ACCENT, alpha=0.55, linewidth=0)
            means = [(place, float(np.mean([v for v, p in zip(y, x) if p == place]))) for place in sorted(set(x))]
            for place, mean in means:
                part.plot([place - 0.24, place + 0.24], [mean, mean], color=SECOND, linewidth=2.4)
            if means and numbers is not None:  # there is nothing between two words
                part.plot(*zip(*means), color=SECOND, linewidth=0.9, alpha=0.6)
        if good and np.min(np.asarray(y, dtype=float)) >= 0:
            within(part, low=0, high=100 if "accuracy" in label or "right" in label or "F1" in label else None)
        part.set_ylabel(clean(label, 34))
        part.grid(False, axis="x")
    last = axes[-1]
    last.set_xlabel(clean(name, 50))
    if scattered is not None:
        positive = [value for value in scattered if value > 0]
        if len(positive) == len(scattered) and max(positive) > 30 * min(positive):
            last.set_xscale("log")
            plain_numbers(last.xaxis)
    else:
        long = len(known) * max(len(clean(value, 18)) for value in known) > 60
        label_ticks(last.xaxis, range(len(known)), [clean(value or "default", 18) for value in known],
                    rotation=30 if long else 0, ha="right" if long else "center")
        last.set_xlim(-0.6, len(known) - 0.4)
    figure.align_ylabels()
    return figure


def _numbers(values: Sequence[str]) -> Optional[List[float]]:
    try:
        found = [float(value) for value in values]
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def _in_order(values: Sequence[str], numbers: Optional[List[float]]) -> List[str]:
    """Each value once: numbers by size, words in the order in which they came, false before true."""
    if numbers is not None:
        return sorted(dict.fromkeys(values), key=float)
    words = list(dict.fromkeys(values))
    return sorted(words) if {word.lower() for word in words} <= {"true", "false", ""} else words


def _aside(places: Sequence[int]) -> np.ndarray:
    """Shifts that keep the points of one place apart; the same every time."""
    seen: dict = {}
    shifts = []
    for place in places:
        count = seen[place] = seen.get(place, 0) + 1
        shifts.append(((count * 0.618034) % 1 - 0.5) * 0.32)
    return np.asarray(shifts)

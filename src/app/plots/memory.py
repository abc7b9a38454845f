"""What the layers remember: half-lives and write strengths, head by head."""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from matplotlib.figure import Figure

from app.plots.style import ACCENT, GREY, INK, MUTED, SECOND, drawing, label_ticks, no_frame, plain_numbers

__all__ = ["half_life_figure", "strength_figure"]

_MOST_ROWS = 64


def _rows(memory: Dict[str, Any]) -> List[Tuple[str, List[Dict[str, Any]]]]:
    """``(name of the layer, its heads)``, by layer, first forward, then backward."""
    found = []
    both = any(layer["backward"] for layer in memory["layers"])
    for layer in memory["layers"]:
        way = "" if not both else " \u2190" if layer["backward"] else " \u2192"
        found.append((f"layer {layer['layer']}{way}", layer["heads"]))
    return found


@drawing
def half_life_figure(memory: Dict[str, Any], length: Optional[float] = None) -> Figure:
    """Half-life of every head: its distribution over tokens, and a dot for the whole; for layers of channels, a dot for
    each.

    Args:
        memory: as `app.remember.measure_memory` gives it.
        length: a usual length of the sequences, marked with a line.
    """
    layers = _rows(memory)
    count = sum(len(heads) for _, heads in layers)
    height = 0.17 if count <= _MOST_ROWS else 0.17 * _MOST_ROWS / count
    figure = Figure(figsize=(5.2, 0.8 + height * (count + 0.8 * len(layers))), layout="constrained")
    axes = figure.subplots()
    y, places, names = 0.0, [], []
    for name, heads in layers:
        places.append(y + (len(heads) - 1) / 2)
        names.append(name)
        for head in heads:
            low, first, _middle, third, high = head["quantiles"]
            axes.plot([low, high], [y, y], color=GREY, linewidth=1, alpha=0.7)
            axes.plot([first, third], [y, y], color=ACCENT, linewidth=min(4.5, 30 * height), alpha=0.55)
            if len(head["channels"]) > 1:
                axes.plot(head["channels"], [y] * len(head["channels"]), "|", color=ACCENT, alpha=0.35, markersize=6)
            axes.plot([head["half_life"]], [y], "o", color=ACCENT, markersize=4.5)
            y += 1
        y += 0.8
    if length is not None:
        axes.axvline(length, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(f" median length, {length:g}", (length, -1), color=SECOND, fontsize=9, va="bottom",
                      annotation_clip=False)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.set_ylim(y - 0.6, -1.1)
    axes.set_xlabel("half-life of the decay, steps")
    label_ticks(axes.yaxis, places, names)
    axes.spines["left"].set_visible(False)
    return figure


@drawing
def strength_figure(memory: Dict[str, Any]) -> Figure:
    """Write strengths: for each layer, the distribution over tokens (and channels), a line for each head."""
    layers = _rows(memory)
    figure = Figure(figsize=(5.2, 0.7 + 0.62 * len(layers)), layout="constrained")
    axes = figure.subplots()
    strongest = memory["strongest"]
    for row, (_name, heads) in enumerate(layers):
        curves = [_density(head["strength_histogram"]) for head in heads]
        top = max(max(curve.max() for curve in curves), 1e-9)
        x = (np.arange(len(curves[0])) + 0.5) / len(curves[0]) * strongest
        mean = np.mean(curves, axis=0) / top
        axes.fill_between(x, row - 0.85 * mean, row, color=ACCENT, alpha=0.18, linewidth=0)
        for curve, head in zip(curves, heads):
            axes.plot(x, row - 0.85 * curve / top, color=ACCENT, linewidth=1, alpha=max(0.25, 0.9 - 0.05 * len(heads)))
            axes.plot([head["strength"]], [row], "o", color=INK, markersize=3, clip_on=False, alpha=0.7)
        axes.axhline(row, color=MUTED, linewidth=0.6, alpha=0.6)
    if strongest > 1:
        axes.axvline(1, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(0, strongest)
    axes.set_ylim(len(layers) - 0.9, -1.0)
    label_ticks(axes.yaxis, range(len(layers)), [name for name, _ in layers])
    axes.set_xlabel(f"{memory['strength_name']} at a token")
    no_frame(axes)
    return figure


def _density(counts: List[int]) -> np.ndarray:
    """A histogram as a curve, a little smoothed."""
    values = np.asarray(counts, dtype=float)
    values = np.convolve(np.pad(values, 2, mode="edge"), [0.1, 0.2, 0.4, 0.2, 0.1], mode="valid")
    return values / max(values.sum(), 1e-9)

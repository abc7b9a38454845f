"""The style of pictures, and writing them: PNG for folders, SVG for pages that can be light or dark."""

import io
import re
import warnings
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, TypeVar, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from myfla.utils.atomic import write_atomic

__all__ = ["ACCENT", "CATEGORIES", "GREY", "INK", "MUTED", "SECOND", "SURFACE", "categories", "clean", "drawing",
           "label_ticks", "no_frame", "plain_numbers", "save_png", "to_svg", "within"]

INK, MUTED, GRID, SURFACE = "#1c2230", "#6a7280", "#e1e4e9", "#fefefe"
ACCENT, SECOND, GREY = "#2d6cb6", "#d97a1f", "#969ca8"
CATEGORIES = ("#3f7fc9", "#de8431", "#2f9e79", "#c84f5c", "#8460c2", "#b08a1e", "#3aa0b8", "#c263a4", "#6f8f3a",
              "#8a6a55")

#: Colours that a page can change: they become variables of its style sheet.
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", SURFACE: "--surface", ACCENT: "--accent",
              SECOND: "--second", GREY: "--grey"}

_STYLE: Dict[Any, Any] = {  # matplotlib's own type of the keys is not in all its versions
    "font.family": "sans-serif", "font.size": 10.5, "axes.titlesize": 10.5, "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0,
    "ytick.minor.size": 0, "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
    "text.parse_math": False,  # the name of a class may contain $
    "svg.fonttype": "none", "svg.hashsalt": "myfla",
}

Draw = TypeVar("Draw", bound=Callable[..., Figure])


def drawing(draw: Draw) -> Draw:
    """Gives a function that makes a `Figure` this style."""

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return cast(Draw, styled)


def categories(count: int) -> List[str]:
    """Colours of ``count`` classes; they repeat after ten."""
    return [CATEGORIES[i % len(CATEGORIES)] for i in range(count)]


def clean(text: Any, most: int = 28) -> str:
    """Text for a picture: one line, no control characters, not too long."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", str(text))
    return line if len(line) <= most else line[: most - 1] + "\u2026"


def label_ticks(axis: Any, places: Sequence[float], names: Sequence[Any], **style: Any) -> None:
    """Names at places of an axis, without grid lines."""
    axis.set_ticks(list(places), [clean(name) for name in names], **style)
    axis.grid(False)


def plain_numbers(axis: Any, minor: bool = False) -> None:
    """Ticks as people write numbers, where ``minor`` also some between powers of ten; matplotlib's own are formulas."""

    def number(value: float, place: Any) -> str:
        return f"{value:,.6g}" if value < 1e6 else f"{value:.0e}"

    axis.set_major_formatter(FuncFormatter(number))
    axis.set_minor_formatter(NullFormatter())
    if minor:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(FuncFormatter(number))
        axis.grid(True, which="minor")


def within(axes: Axes, low: Optional[float] = None, high: Optional[float] = None) -> None:
    """Keep impossible values off the vertical axis: below ``low`` or above ``high``, with room for a line."""
    bottom, top = axes.get_ylim()
    room = 0.03 * (top - bottom)
    axes.set_ylim(bottom if low is None else max(bottom, low - room), top if high is None else min(top, high + room))
    if low is not None or high is not None:
        ticks = [tick for tick in axes.get_yticks() if (low is None or tick >= low) and (high is None or tick <= high)]
        axes.set_yticks([tick for tick in ticks if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]])


def no_frame(axes: Axes) -> None:
    """Hide the frame."""
    for spine in axes.spines.values():
        spine.set_visible(False)


def save_png(figure: Figure, path: Path) -> None:
    """A PNG on white."""
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    _save(figure, file, format="png", dpi=144, facecolor="white")
    write_atomic(path, file.getvalue())


def to_svg(figure: Figure, name: str, title: str) -> str:
    """An ``<svg>`` element for a page.

    Args:
        figure: made under `drawing`.
        name: a word that no other picture of the page has; ids begin with it.
        title: describes it for screen readers.

    Returns:
        markup that fills its place, takes the page's font and its colours, and loads nothing.
    """
    FigureCanvasSVG(figure)
    file = io.StringIO()
    _save(figure, file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|xmlns(:xlink)?|version)="[^"]*"', "", head).replace("xlink:href", "href")
    return f'{head} role="img"><title>{escape(title)}</title>{rest.replace("xlink:href", "href").strip()}'


def _save(figure: Figure, file: Any, **how: Any) -> None:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A browser uses another font for characters that ours lacks; a PNG shows a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, **how)

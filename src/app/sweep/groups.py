"""Jobs that differ only in their seed, with mean and spread."""

import math
import statistics
from typing import Dict, List, NamedTuple, Optional, Tuple

from app.figures import FIGURES, parts_of, word
from app.sweep.jobs import AIMS, Row, aim_of

__all__ = ["Figure", "Group", "figures_of", "group", "mean_and_spread", "shown", "shown_spread", "shown_value", "tied"]

SEED = "seed"

_SIZE = "encoder_parameters"
_LATER = (
    ("train_tokens_per_s", "training, tokens/s", "{:,.0f}"),
    ("prefill_tokens_per_s", "prefill, tokens/s", "{:,.0f}"),
    ("decode_tokens_per_s", "decoding, tokens/s", "{:,.0f}"),
    ("train_peak_mb", "training, peak MB", "{:,.1f}"),
    ("fit_seconds", "seconds", "{:,.1f}"),
    (_SIZE, "parameters", "{:,.0f}"),
)


class Figure(NamedTuple):
    """A column of the table: key in ``metrics.json``, label, format."""

    key: str
    label: str
    form: str


class Group(NamedTuple):
    """Runs with the same settings except for the seed.

    Attributes:
        settings: the settings that differ between jobs, without the seed.
        rows: its jobs with figures, the best first.
        failed: its jobs without figures.
        spread: ``(mean, standard deviation)`` by figure; the deviation is None for one job.
    """

    settings: Dict[str, str]
    rows: List[Row]
    failed: List[Row]
    spread: Dict[str, Tuple[float, Optional[float]]]


def figures_of(rows: List[Row]) -> List[Figure]:
    """The figures by which jobs are compared: first what is minimised; the encoders' sizes if they differ."""
    aim = aim_of(rows)
    found = [] if aim is None else [Figure(aim, AIMS[aim], "{:.4g}")]
    for part in dict.fromkeys(part for row in rows for part in parts_of(row)):
        found += [Figure(f"{part}_{name}", f"{word(part)} {label}", form) for name, label, form in FIGURES]
    found += [Figure(*later) for later in _LATER]
    same = {_SIZE} if len({row.get(_SIZE) for row in rows} - {None}) < 2 else set()
    there = [figure for figure in found if any(_is_number(row.get(figure.key)) for row in rows)]
    return [figure for figure in there if figure.key not in same]


def group(rows: List[Row]) -> List[Group]:
    """Groups of `collect`'s rows, sorted by the mean of the figure that is minimised; groups without a result are
    last."""
    found: Dict[Tuple[str, ...], List[Row]] = {}
    names = [name for name in (rows[0]["settings"] if rows else {}) if name != SEED]
    for row in rows:
        found.setdefault(tuple(row["settings"][name] for name in names), []).append(row)
    keys = [figure.key for figure in figures_of(rows)]
    made = [_group(dict(zip(names, values)), mine, keys) for values, mine in found.items()]
    aim = aim_of(rows) or ""
    return sorted(made, key=lambda one: _finite(one.spread.get(aim, (math.inf, None))[0]))


def tied(best: Group, other: Group, key: str) -> bool:
    """Whether two groups differ by less than their seeds do: their means differ by less than two standard errors.

    Args:
        best, other: groups of several jobs each; a single job has no spread.
        key: key of the figure.
    """
    (first, a), (second, b) = best.spread.get(key, (math.nan, None)), other.spread.get(key, (math.nan, None))
    if a is None or b is None:
        return False
    error = math.sqrt(a * a / len(best.rows) + b * b / len(other.rows))
    return abs(first - second) <= 2 * error


def mean_and_spread(values: List[float]) -> Tuple[float, Optional[float]]:
    """Mean and standard deviation (of a sample).

    Example:
        >>> mean_and_spread([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def shown(figure: Figure, mean: float, spread: Optional[float]) -> str:
    """Mean and spread in words.

    Example:
        >>> shown(Figure("a", "accuracy", "{:.1%}"), 0.982, 0.0031), shown(Figure("l", "loss", "{:.4g}"), 0.5, 0.01234)
        ('98.2% ± 0.3%', '0.5 ± 0.012')
    """
    return figure.form.format(mean) + shown_spread(figure, spread)


def shown_spread(figure: Figure, spread: Optional[float]) -> str:
    """The part of `shown` behind the mean; nothing where there is no spread, as of a number of parameters."""
    if spread is None or figure.key == _SIZE:
        return ""
    return f" \u00b1 {('{:.2g}' if figure.form.endswith('g}') else figure.form).format(spread)}"


def shown_value(text: str) -> str:
    """A setting as it was written, long numbers to four digits.

    Example:
        >>> shown_value("0.0024834578"), shown_value("encoder"), shown_value("1000000000")
        ('0.002483', 'encoder', '1000000000')
    """
    try:
        return f"{float(text):.4g}" if len(text) > 8 and not text.isdigit() else text
    except ValueError:
        return text


def _group(settings: Dict[str, str], rows: List[Row], keys: List[str]) -> Group:
    good = [row for row in rows if "error" not in row]
    spread = {}
    for key in keys:
        values = [float(row[key]) for row in good if _is_number(row.get(key))]
        if values:
            spread[key] = mean_and_spread(values)
    return Group(settings, good, [row for row in rows if "error" in row], spread)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf

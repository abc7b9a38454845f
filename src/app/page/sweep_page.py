"""``sweep.html``: all jobs of a sweep on one page."""

import datetime
from pathlib import Path
from typing import Any, List, Optional

from app.checks import Verdict
from app.page import html
from app.page.html import Markup, join, section, tag
from app.page.run_page import repeat_command
from app.plots.effects import MOST_VALUES, effect_figure
from app.plots.style import to_svg
from app.sweep.groups import SEED, Figure, Group, figures_of, shown, shown_spread, shown_value, tied
from app.sweep.jobs import Row
from app.sweep.table import short_names
from myfla.utils.atomic import write_atomic

__all__ = ["REPORT", "write_sweep_page"]

REPORT = "sweep.html"


def write_sweep_page(folder: Path, rows: List[Row], groups: List[Group], verdicts: List[Verdict]) -> Path:
    """Write the page.

    Args:
        folder: of the sweep.
        rows: its jobs, see `app.sweep.jobs.collect`.
        groups: of them, see `app.sweep.groups.group`.
        verdicts: of the sweep's checks.

    Returns:
        its path.
    """
    failed = sum("error" in row for row in rows)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    names = ", ".join(short_names([name for name in rows[0]["settings"] if name != SEED])) or "seeds"
    lead = f"{len(rows)} jobs, {failed} failed \u00b7 {now}" if failed else f"{len(rows)} jobs \u00b7 {now}"
    parts = [_best(groups, rows), _verdicts(verdicts), _failures(rows), _means(groups, rows), _effects(rows),
             _jobs(rows)]
    path = folder / REPORT
    write_atomic(path, html.page(f"Sweep of {names}", lead, *parts).encode("utf-8"))
    return path


def _best(groups: List[Group], rows: List[Row]) -> Optional[Markup]:
    figures = figures_of(rows)
    if not groups or not groups[0].rows or not figures:
        return None
    best = groups[0]
    named = [*zip(short_names(list(best.settings)), map(shown_value, best.settings.values())),
             *((figure.label, shown(figure, *best.spread[figure.key])) for figure in figures[:6]
               if figure.key in best.spread)]
    note = f"The lowest mean {figures[0].label} over its seeds." if len(best.rows) > 1 else (
        f"The lowest {figures[0].label}.")
    return section("The best", html.cards((label, value or "default") for label, value in named),
                   html.paragraph("To run it again:"), html.code(repeat_command(best.rows[0].get("overrides", []))),
                   note=note)


def _verdicts(verdicts: List[Verdict]) -> Optional[Markup]:
    if not verdicts:
        return None
    rows = []
    for verdict in verdicts:
        state = tag("span", "passed") if verdict.passed else tag("strong", "missed", class_="bad")
        rows.append([state, verdict.check, verdict.reason or f"{verdict.value:.4f}", verdict.runs])
    return section("Checks", html.table(["", "must hold", "found", "jobs"], rows, right=["found", "jobs"]))


def _failures(rows: List[Row]) -> Optional[Markup]:
    failed = [row for row in rows if "error" in row]
    if not failed:
        return None
    names = list(rows[0]["settings"])
    cells = [[row["job"], *map(shown_value, row["settings"].values()), tag("span", row["error"], class_="bad")]
             for row in failed]
    return section("Failed jobs", html.table(["job", *short_names(names), "reason"], cells),
                   note="The other jobs ended normally.")


def _means(groups: List[Group], rows: List[Row]) -> Optional[Markup]:
    figures = figures_of(rows)
    if not figures:
        return None
    columns = [*short_names(list(groups[0].settings)), "jobs", *(figure.label for figure in figures)]
    cells = []
    for one in groups:
        count = f"{len(one.rows)}" + (f", {len(one.failed)} failed" if one.failed else "")
        settings = (shown_value(value) or tag("span", "default", class_="quiet") for value in one.settings.values())
        ties = one is not groups[0] and tied(groups[0], one, figures[0].key)
        mark = "best" if one is groups[0] and one.rows else "\u2248 best" if ties else ""
        cells.append([mark, *settings, count, *(_cell(figure, one) for figure in figures)])
    columns = ["", *columns]
    note = f"Sorted by {figures[0].label}; mean \u00b1 standard deviation where there are several seeds. " + (
        "\u2248: not distinguishable from the best with these seeds (means differ by less than two standard errors)."
        if any(len(one.rows) > 1 for one in groups) else "One seed each: small differences may be chance.")
    table = html.table(columns, cells, right=columns[1 + len(groups[0].settings):], best=bool(groups[0].rows))
    return section("All settings", table, note=note)


def _cell(figure: Figure, one: Group) -> Any:
    if figure.key not in one.spread:
        return None
    mean, spread = one.spread[figure.key]
    if spread is None:
        return figure.form.format(mean)
    return join(figure.form.format(mean), tag("span", shown_spread(figure, spread), class_="spread"))


def _effects(rows: List[Row]) -> Optional[Markup]:
    good = [row for row in rows if "error" not in row]
    figures = _panels(figures_of(good))
    drawn: List[Markup] = []
    for name in rows[0]["settings"]:
        values = [row["settings"][name] for row in good]
        if name == SEED or len(set(values)) < 2 or not figures:
            continue
        panels = [(_axis(figure), [_scaled(figure, row.get(figure.key)) for row in good]) for figure in figures]
        svg = to_svg(effect_figure(name, values, panels), f"effect{len(drawn)}", f"Effect of {name}")
        few = len(set(values)) <= MOST_VALUES
        drawn.append(html.figure(svg, join(tag("strong", name), "; a point for each job" + (
            ", a line at the mean of each value." if few else "."))))
    if not drawn:
        return None
    several = len([name for name in rows[0]["settings"] if name != SEED]) > 1
    note = "Over all values of the other settings." if several else ""
    return section("Effect of each setting", html.grid(*drawn), note=note)


def _panels(figures: List[Figure]) -> List[Figure]:
    """The figure that is minimised, and the first figure of the test set."""
    tests = [figure for figure in figures[1:] if figure.key.startswith("test_")]
    return figures[:1] + (tests or figures[1:])[:1]


def _axis(figure: Figure) -> str:
    return f"{figure.label}, %" if "%" in figure.form else figure.label


def _scaled(figure: Figure, value: Any) -> Optional[float]:
    if not isinstance(value, (int, float)):
        return None
    return 100 * value if "%" in figure.form else value


def _jobs(rows: List[Row]) -> Markup:
    figures = figures_of(rows)
    columns = ["job", *short_names(list(rows[0]["settings"])), *(figure.label for figure in figures)]
    cells = [[row["job"], *map(shown_value, row["settings"].values()),
              *(figure.form.format(row[figure.key]) if figure.key in row else None for figure in figures)]
             for row in rows if "error" not in row]
    return section("Jobs", html.details("Every job", html.table(columns, cells)))

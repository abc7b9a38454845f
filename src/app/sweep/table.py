"""A sweep on the terminal and as CSV."""

import csv
from pathlib import Path
from typing import Any, Dict, List

from app.run_folder import relative, whole_file
from app.sweep.groups import Group, figures_of, shown, shown_value
from app.sweep.jobs import AIMS, Row, aim_of
from app.tables import say, show_table

__all__ = ["short_names", "show", "write_groups", "write_jobs"]


def write_jobs(rows: List[Row], path: Path) -> None:
    """One line a job: its settings, its figures, or why it failed."""
    keys = [figure.key for figure in figures_of(rows)]
    _write(path, [{"job": row["job"], **row["settings"], **{key: row.get(key) for key in keys},
                   "error": row.get("error", "")} for row in rows])


def write_groups(groups: List[Group], rows: List[Row], path: Path) -> None:
    """One line for all jobs that differ only in the seed: mean and standard deviation of every figure."""
    lines = []
    for one in groups:
        line: Dict[str, Any] = {**one.settings, "jobs": len(one.rows), "failed": len(one.failed)}
        for figure in figures_of(rows):
            line[f"{figure.key}_mean"], line[f"{figure.key}_std"] = one.spread.get(figure.key, (None, None))
        lines.append(line)
    _write(path, lines)


def show(rows: List[Row], groups: List[Group], folder: Path) -> None:
    """Print the jobs, the groups if one has several jobs, and why jobs failed."""
    figures = figures_of(rows)
    names = short_names(list(rows[0]["settings"]))
    best = AIMS.get(aim_of(rows) or "", "result")
    columns = ["job", *names, *(figure.label for figure in figures)]
    cells = []
    for row in rows:
        values = [figure.form.format(row[figure.key]) if figure.key in row else "" for figure in figures]
        if "error" in row:
            values = ["failed", *values[1:]]
        cells.append([row["job"], *map(shown_value, row["settings"].values()), *values])
    show_table(columns if figures else [*columns, "state"], cells, f"{len(rows)} jobs, best {best} first",
               right=["job", *(figure.label for figure in figures)])
    if any(len(one.rows) + len(one.failed) > 1 for one in groups) and figures:
        columns = [*short_names(list(groups[0].settings)), "jobs", *(figure.label for figure in figures)]
        cells = [[*map(shown_value, one.settings.values()), len(one.rows),
                  *(shown(figure, *one.spread[figure.key]) if figure.key in one.spread else "" for figure in figures)]
                 for one in groups]
        show_table(columns, cells, "mean \u00b1 standard deviation over seeds", right=columns[len(groups[0].settings):])
    for row in rows:
        if "error" in row:
            say(f"job {row['job']} failed: {row['error']}")
    say(f"{relative(folder)}/sweep.csv")


def short_names(keys: List[str]) -> List[str]:
    """Keys without their group, where that leaves no doubt.

    Example:
        >>> short_names(["encoder.use_gate", "job.noise", "data.noise"])
        ['use_gate', 'job.noise', 'data.noise']
    """
    short = [key.rpartition(".")[2] for key in keys]
    return [name if short.count(name) == 1 else key for key, name in zip(keys, short)]


def _write(path: Path, lines: List[Dict[str, Any]]) -> None:
    with whole_file(path) as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)

"""The table at the end of a sweep, by a Hydra callback that reads what the jobs left."""

import csv
import json
import math
from pathlib import Path
from typing import Any, Dict, List

from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from app.checks import judge, show_verdicts
from app.run_folder import FAILURE, RESULTS, relative, write_json

__all__ = ["SweepTable", "collect", "register_sweep_table"]

FIGURES = (("val_loss", "val loss", ".4f"), ("val_accuracy", "val acc", ".4f"), ("test_accuracy", "test acc", ".4f"),
           ("test_macro_f1", "macro F1", ".4f"), ("train_tokens_per_s", "tokens/s", ",.0f"),
           ("fit_seconds", "seconds", ".1f"))


def register_sweep_table() -> None:
    """Store the callback as ``hydra/callbacks=sweep_table``; in Python, because our YAML holds no class paths."""
    node = {"sweep_table": {"_target_": "app.sweep.SweepTable"}}
    ConfigStore.instance().store(group="hydra/callbacks", name="sweep_table", node=node, provider="app")


class SweepTable(Callback):
    """Prints one table of all jobs, writes it as ``sweep.csv``; ends the program with 1 if a job or a check failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = collect(folder)
        if not rows:
            return
        _write(rows, folder / "sweep.csv")
        _show(rows, folder)
        # Where every job failed, a broken check may be the reason, and there is nothing to judge.
        checks = [] if all("error" in row for row in rows) else OmegaConf.to_object(config.checks)
        verdicts = judge(checks, rows)
        show_verdicts(verdicts)
        write_json({"checks": [verdict._asdict() for verdict in verdicts]}, folder / "checks.json")
        if any("error" in row for row in rows) or not all(verdict.passed for verdict in verdicts):
            # Hydra turns exceptions of callbacks into warnings; an exit is none.
            raise SystemExit(1)


def collect(folder: Path) -> List[Dict[str, Any]]:
    """One row for each job below a sweep's folder, best validation loss first, failed ones last.

    Returns:
        dicts with ``job``, ``settings`` (the overrides in which the jobs differ) and the job's figures or ``error``.
    """
    rows = []
    for job in sorted((path for path in folder.iterdir() if path.is_dir()), key=_number):
        values = _read(job)
        if values is not None:
            overrides = dict(item.partition("=")[::2] for item in values.get("overrides", []))
            rows.append({**values, "job": job.name, "settings": overrides})
    keys = list(dict.fromkeys(key for row in rows for key in row["settings"]))
    varying = [key for key in keys if len({row["settings"].get(key) for row in rows}) > 1]
    for row in rows:
        row["settings"] = {key: row["settings"].get(key, "") for key in varying}
    return sorted(rows, key=lambda row: ("error" in row, row.get("val_loss", math.inf)))


def _number(path: Path) -> Any:
    return (0, int(path.name), "") if path.name.isdigit() else (1, 0, path.name)


def _read(job: Path) -> Any:
    for name in (RESULTS, FAILURE):
        if (job / name).is_file():
            return json.loads((job / name).read_text(encoding="utf-8"))
    record = job / ".hydra" / "overrides.yaml"  # Hydra writes it before the job starts
    if record.is_file():
        return {"error": "ended without a result; see its log", "overrides": list(OmegaConf.load(record))}
    return None


def _write(rows: List[Dict[str, Any]], path: Path) -> None:
    names = [key for key, _, _ in FIGURES if any(key in row for row in rows)]
    flat = [{"job": row["job"], **row["settings"], **{key: row.get(key) for key in names}} for row in rows]
    for line, row in zip(flat, rows):
        line["error"] = row.get("error", "")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def _show(rows: List[Dict[str, Any]], folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(rows)} jobs, best validation loss first", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("job", justify="right")
    settings = list(rows[0]["settings"])
    short = [key.rpartition(".")[2] for key in settings]
    for key, name in zip(settings, short):
        table.add_column(name if short.count(name) == 1 else key)
    figures = [figure for figure in FIGURES if any(figure[0] in row for row in rows)]
    for _, label, _ in figures:
        table.add_column(label, justify="right")
    for row in rows:
        cells = [format(row[key], form) if key in row else "failed" for key, _, form in figures[:1]]
        cells += [format(row[key], form) if key in row else "" for key, _, form in figures[1:]]
        table.add_row(row["job"], *row["settings"].values(), *cells)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"job {row['job']} failed: {row['error']}", style="red", markup=False, highlight=False)
    console.print(f"{relative(folder)}/sweep.csv", markup=False, highlight=False)

"""The end of a sweep, as a Hydra callback: one table and one page of all jobs, verdicts, the exit code."""

import logging
from pathlib import Path
from typing import Any, List

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from app.checks import Verdict, judge, show_verdicts
from app.run_folder import relative, write_json
from app.sweep.groups import Group, group
from app.sweep.jobs import Row, collect
from cfg.check import CheckConfig
from cfg.hydra_versions import store_config

__all__ = ["SweepTable", "register_sweep_table"]

START, TARGET = "app.start.RunStart", "app.sweep.SweepTable"
"""The classes that a config of this application names; see `register_sweep_table`."""

log = logging.getLogger(__name__)


def register_sweep_table() -> None:
    """Store the callbacks, of the start and of the end of a sweep, as ``hydra/callbacks=app``.

    This is done in Python, because our YAML files contain no class paths.
    """
    node = {"run_start": {"_target_": START}, "sweep_table": {"_target_": TARGET}}
    store_config(group="hydra/callbacks", name="app", node=node, provider="app")


class SweepTable(Callback):
    """Prints one table of all jobs, writes ``sweep.csv``, ``sweep_means.csv``, ``checks.json`` and ``sweep.html``; ends
    the program with 1 if a job or a check failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = collect(folder)
        if not rows:
            return
        from app.sweep.table import show, write_groups, write_jobs

        groups = group(rows)
        write_jobs(rows, folder / "sweep.csv")
        write_groups(groups, rows, folder / "sweep_means.csv")
        show(rows, groups, folder)
        # If every job failed, a wrong check may be the reason, and there are no results to check.
        judged = [] if all("error" in row for row in rows) else config.checks
        checks = [check for check in map(OmegaConf.to_object, judged) if isinstance(check, CheckConfig)]
        verdicts = judge(checks, rows)
        show_verdicts(verdicts)
        write_json({"checks": [verdict._asdict() for verdict in verdicts]}, folder / "checks.json")
        _write_page(folder, rows, groups, verdicts)
        if any("error" in row for row in rows) or not all(verdict.passed for verdict in verdicts):
            # Hydra turns exceptions of callbacks into warnings, but not an exit.
            raise SystemExit(1)


def _write_page(folder: Path, rows: List[Row], groups: List[Group], verdicts: List[Verdict]) -> None:
    try:
        from app.page.sweep_page import write_sweep_page
    except ModuleNotFoundError as problem:  # tables need no pictures
        log.warning("no sweep.html: it needs the package %r; pip install 'myfla[app]'", problem.name)
        return
    print(relative(write_sweep_page(folder, rows, groups, verdicts)))

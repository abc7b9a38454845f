"""The results of a sweep: `jobs` collects the runs, `groups` joins those that differ only in the seed, `table` shows
them, and Hydra calls `callback` at the end. Large libraries are imported only there."""

from app.sweep.callback import START, TARGET, SweepTable, register_sweep_table
from app.sweep.jobs import collect

__all__ = ["START", "TARGET", "SweepTable", "collect", "register_sweep_table"]

"""The results of a sweep: `jobs` collects the runs, `groups` joins those that differ only in the seed, `table` shows
them, `callback` is called by Hydra at the end. Heavy libraries are imported there and not before."""

from app.sweep.callback import START, TARGET, SweepTable, register_sweep_table
from app.sweep.jobs import collect

__all__ = ["START", "TARGET", "SweepTable", "collect", "register_sweep_table"]

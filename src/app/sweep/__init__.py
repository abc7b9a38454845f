"""What is left of a sweep: `jobs` collects the runs, `groups` joins those that differ only in the seed, `table` shows
them, `callback` is called by Hydra at the end. Heavy libraries are imported there and not before."""

from app.sweep.callback import TARGET, SweepTable, register_sweep_table
from app.sweep.jobs import collect

__all__ = ["TARGET", "SweepTable", "collect", "register_sweep_table"]

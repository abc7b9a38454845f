"""The jobs of a sweep, read from their folders."""

import math
from pathlib import Path
from typing import Any, Dict, List, Optional

from yaml import YAMLError

from app.errors import RunError
from app.run_folder import FAILURE, RESULTS, read_json
from encoders.training.plain_yaml import read_plain_yaml

__all__ = ["Row", "aim_of", "collect"]

Row = Dict[str, Any]

#: Keys of the figure that is minimised: the first that a job has. Trained runs are never sorted by test results.
AIMS = {"val_loss": "validation loss", "seconds_per_token": "seconds per token", "train_loss": "training loss",
        "test_loss": "test loss"}


def collect(folder: Path) -> List[Row]:
    """One row for each job below a sweep's folder, the best first, failed ones last.

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
    aim = aim_of(rows)
    return sorted(rows, key=lambda row: ("error" in row, _order(row.get(aim or ""))))


def aim_of(rows: List[Row]) -> Optional[str]:
    """The key of the figure that is minimised; None if no job has one."""
    return next((aim for aim in AIMS if any(aim in row for row in rows)), None)


def _order(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else math.inf


def _number(path: Path) -> Any:
    return (0, int(path.name), "") if path.name.isdigit() else (1, 0, path.name)


def _read(job: Path) -> Optional[Row]:
    reason = "ended without a result; see its log"
    for name in (RESULTS, FAILURE):
        if (job / name).is_file():
            try:
                return read_json(job / name)
            except RunError as problem:  # one damaged job must not hide the others
                reason = str(problem)
    record = job / ".hydra" / "overrides.yaml"  # Hydra writes it before the job starts
    if record.is_file():
        try:
            found = read_plain_yaml(record)
        except (OSError, YAMLError, RecursionError, ValueError) as problem:
            return {"error": f"{reason}; {record.name} cannot be read: {problem}", "overrides": []}
        return {"error": reason, "overrides": list(map(str, found)) if isinstance(found, list) else []}
    return None

"""The sizes of the training, validation and test sets, for the report and ``metrics.json``."""

from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from encoders.training.data.sequences import SequenceSet
from encoders.training.tasks.spec import TaskSpec

__all__ = ["summarise", "summary_rows"]

MOST_READ = 2000
"""Largest number of sequences of a set that is read for missing values; of more, every n-th."""


def summarise(sets: Mapping[str, Optional[SequenceSet]], task: TaskSpec) -> Dict[str, Dict[str, Any]]:
    """Facts of each set, ready for JSON.

    Args:
        sets: the sets by name, e.g. ``training``, ``validation``, ``test``.
        task: the task of the run.

    Returns:
        for each set ``sequences``, ``steps``, ``shortest``, ``median``, ``longest``, ``missing`` (share of values; None
        for token ids) and, if targets are classes with names, ``classes``: the number of targets of each.
    """
    return {name: _facts(part, task) for name, part in sets.items() if part is not None and len(part)}


def _facts(part: SequenceSet, task: TaskSpec) -> Dict[str, Any]:
    lengths = torch.tensor(part.lengths)
    facts: Dict[str, Any] = {
        "sequences": len(part), "steps": int(lengths.sum()), "shortest": int(lengths.min()),
        "median": float(lengths.double().quantile(0.5)), "longest": int(lengths.max()), "missing": _missing(part),
    }
    if task.kind == "classes" and task.names is not None and not task.shifts:
        flat = part.targets if isinstance(part.targets, Tensor) else torch.cat(list(part.targets))
        counts = torch.bincount(flat[flat >= 0].flatten(), minlength=len(task.names)).tolist()
        facts["classes"] = dict(zip(task.names, counts))
    return facts


def _missing(part: SequenceSet) -> Optional[float]:
    gone, total = 0, 0
    for i in range(0, len(part), -(-len(part) // MOST_READ)):
        x = part.sequences[i]
        if not x.is_floating_point():
            return None
        gone, total = gone + int(x.isnan().sum()), total + x.numel()
    return gone / max(total, 1)


def summary_rows(summary: Mapping[str, Mapping[str, Any]]) -> Tuple[List[str], List[List[str]]]:
    """Columns (the sets) and rows of a table.

    Example:
        >>> facts = {"sequences": 2, "steps": 1009, "shortest": 4, "median": 504.5, "longest": 1005, "missing": 0.0}
        >>> summary_rows({"test": facts})[1]
        [['sequences', '2'], ['steps', '1,009'], ['shortest', '4'], ['median length', '504.5'], ['longest', '1,005'], \
['missing values', 'none']]
    """
    shown = (("sequences", "sequences"), ("steps", "steps"), ("shortest", "shortest"), ("median length", "median"),
             ("longest", "longest"))
    rows = [[label, *(_number(facts[key]) for facts in summary.values())] for label, key in shown]
    gone = [_share(facts["missing"]) for facts in summary.values()]
    return ["", *summary], [*rows, ["missing values", *gone]]


def _number(value: float) -> str:
    return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _share(share: Optional[float]) -> str:
    if share is None:
        return "\u2013"
    return f"{share:.2%}" if share else "none"

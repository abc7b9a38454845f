"""Thresholds that the runs of a sweep must reach: all of them, or those with certain settings."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from cfg.validation import Fields

__all__ = ["CheckConfig"]

WAYS = ("mean", "each")


@dataclass
class CheckConfig:
    """One threshold, checked when a sweep has ended; a sweep that misses one ends with exit code 1.

    Args:
        metric: a figure of ``metrics.json``, e.g. ``test_accuracy``.
        where: only runs with these settings count, e.g. ``{encoder.use_gate: false}``; all runs if empty.
        at_least: smallest value that is accepted; this or ``at_most`` must be set.
        at_most: largest value that is accepted; this or ``at_least`` must be set.
        of: whether the ``mean`` of the runs, or ``each`` of them, must meet the threshold.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``checks.<field>``.

    Example:
        >>> CheckConfig(metric="test_accuracy", at_least=0.9).of
        'mean'
    """

    metric: str = "???"
    where: Dict[str, Any] = field(default_factory=dict)
    at_least: Optional[float] = None
    at_most: Optional[float] = None
    of: str = "mean"

    def __post_init__(self) -> None:
        fields = Fields(self, "checks")
        fields.text("metric")
        for bar in ("at_least", "at_most"):
            fields.number(bar, -1e30, 1e30, optional=True)
        if self.at_least is None and self.at_most is None:
            raise fields.error("at_least", "must be set, or checks.at_most", None, "a check needs a bar")
        fields.choice("of", WAYS)

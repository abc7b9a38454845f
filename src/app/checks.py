"""Checks whether the runs of a sweep meet the conditions of its config."""

from typing import Any, Dict, List, NamedTuple, Sequence

from cfg.check import CheckConfig

__all__ = ["Verdict", "judge", "show_verdicts"]

Row = Dict[str, Any]


class Verdict(NamedTuple):
    """One check and its result.

    Attributes:
        check: the condition in words.
        runs: how many runs counted.
        value: the figure that was compared with the threshold (the mean, or the worst run); None without a figure.
            passed: whether the condition is met; false without runs, and if a run failed or has no such figure.
        reason: why there is nothing to compare, or "".
    """

    check: str
    runs: int
    value: Any
    passed: bool
    reason: str


def judge(checks: Sequence[CheckConfig], rows: Sequence[Row]) -> List[Verdict]:
    """Judge every check.

    Args:
        checks: of the sweep's config.
        rows: a dict for each run: its figures or ``error``, and ``overrides``, e.g. ``["encoder.use_gate=false"]``.

    Example:
        >>> rows = [{"overrides": ["seed=0"], "test_accuracy": 0.9}, {"overrides": ["seed=1"], "test_accuracy": 1.0}]
        >>> judge([CheckConfig(metric="test_accuracy", at_least=0.95, of="each")], rows)[0].passed
        False
    """
    return [_judge(check, [row for row in rows if _counts(check, row)]) for check in checks]


def show_verdicts(verdicts: Sequence[Verdict]) -> None:
    """A line for each verdict on standard output."""
    for verdict in verdicts:
        found = verdict.reason or f"{verdict.value:.4f} of {verdict.runs} runs"
        print(f"{'passed' if verdict.passed else 'MISSED'}: {verdict.check}: {found}")


def _judge(check: CheckConfig, rows: List[Row]) -> Verdict:
    words = _words(check)
    failed = sum("error" in row for row in rows)
    missing = sum(not isinstance(row.get(check.metric), (int, float)) for row in rows)
    if not rows or failed or missing:
        reason = ("no run has these settings" if not rows else f"{failed} of {len(rows)} runs failed" if failed
                  else f"{missing} of {len(rows)} runs have no figure {check.metric!r}")
        return Verdict(words, len(rows), None, False, reason)
    values = [float(row[check.metric]) for row in rows]
    mean = sum(values) / len(values)
    low, high = (mean, mean) if check.of == "mean" else (min(values), max(values))
    above = check.at_least is None or low >= check.at_least
    below = check.at_most is None or high <= check.at_most
    value = high if check.at_least is None or (above and not below) else low
    return Verdict(words, len(rows), value, above and below, "")


def _counts(check: CheckConfig, row: Row) -> bool:
    given = dict(item.partition("=")[::2] for item in row.get("overrides", []))
    return all(_plain(given.get(key, "")) == _plain(value) for key, value in check.where.items())


def _plain(value: Any) -> str:
    """A value as it is written on a command line, where ``True`` and ``true`` mean the same."""
    text = "null" if value is None else str(value)
    return text.lower() if text.lower() in ("true", "false", "null") else text


def _words(check: CheckConfig) -> str:
    bars = [f"{sign} {bar:g}" for sign, bar in ((">=", check.at_least), ("<=", check.at_most)) if bar is not None]
    where = ", ".join(f"{key}={_plain(value)}" for key, value in check.where.items())
    return f"{check.metric} of {'each run' if check.of == 'each' else 'the mean'}" + (
        f" with {where}" if where else "") + f" {' and '.join(bars)}"

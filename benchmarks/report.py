"""Rows as a table for the terminal and as a table for a document."""

from typing import Dict, Optional, Sequence

from benchmarks.rows import Row


def table(rows: Sequence[Row]) -> str:
    """The lines of one case: a heading, one line for each side, notes."""
    first = rows[0]
    heading = " | ".join(part for part in (first.op, first.shape, first.dtype, first.work, _threads(first)) if part)
    width = max(len(row.side) for row in rows) + 2
    lines = [heading] + [f"  {row.side:{width}s}{_figures(row)}" for row in rows]
    lines += [f"  {row.side}: {row.goal}" for row in rows if row.goal]
    lines += [f"  {note}" for note in dict.fromkeys(row.note for row in rows if row.note)]
    return "\n".join(lines)


def _figures(row: Row) -> str:
    if row.seconds is None:
        return f"{row.status}: {row.reason}" if row.reason else row.status
    least = "" if row.fastest is None else f"(least {milliseconds(row.fastest)})"
    parts = [f"{milliseconds(row.seconds):>9s} ms {least:17s}"]
    if row.threads == 1 and row.wall is not None:
        parts.append(f"wall {milliseconds(row.wall):>8s} ms")
    parts.append("        " if row.ratio is None else f"{row.ratio:7.2f}x")
    if row.tokens_per_second:
        parts.append(f"{count(row.tokens_per_second):>7s} tok/s")
    if row.share:
        parts.append(f"{row.share:5.2f} of floor")
    if row.peak_bytes is not None:
        parts.append(f"peak {row.peak_bytes / 1e6:8.1f} MB")
    if row.error is not None:
        parts.append(f"differs by {row.error:.0e}")
    return "  ".join(parts)


def markdown(rows: Sequence[Row]) -> str:
    """For each op and dtype a table with a line for each case and a column for each side.

    Cells hold milliseconds, (times the first side's), and peak memory where it was measured. The text below the table
    says why a side did not run everywhere; a side that did not run at all has no column.
    """
    groups = dict.fromkeys((row.op, row.dtype) for row in rows)
    return "\n\n".join(_pivot([row for row in rows if (row.op, row.dtype) == group]) for group in groups)


def _pivot(rows: Sequence[Row]) -> str:
    ran = {row.side for row in rows if row.seconds is not None}
    sides = [side for side in dict.fromkeys(row.side for row in rows) if side in ran]
    cases: Dict[tuple, Dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row.case, {})[row.side] = row
    floors = any(row.share for row in rows if row.side == sides[0])
    more = ["tokens/s"] * any(row.tokens_per_second for row in rows) + ["share of floor"] * floors
    lines = [
        "| " + " | ".join([f"{rows[0].op}, {rows[0].dtype}".strip(", "), sides[0], *more, *sides[1:]]) + " |",
        "|---" + "|---:" * (len(sides) + len(more)) + "|",
    ]
    below: Dict[str, Dict[str, None]] = {}
    for case in cases.values():
        first = next(iter(case.values()))
        name = ", ".join(part for part in (first.shape, first.work, _threads(first)) if part)
        extra = [count(first.tokens_per_second)] if first.tokens_per_second else [""] * ("tokens/s" in more)
        extra += [f"{first.share:.2f}" if first.share else ""] * floors
        cells = [_cell(case.get(side), side == sides[0]) for side in sides]
        lines.append("| " + " | ".join([name, cells[0], *extra, *cells[1:]]) + " |")
        for row in case.values():
            if row.seconds is None and row.side in ran:
                below.setdefault(f"{row.status}: {row.reason}", {})[row.side] = None
    notes = [f"- {', '.join(names)} {reason}" for reason, names in below.items()]
    return "\n".join(lines + (["", *notes] if notes else []))


def _cell(row: Optional[Row], first: bool) -> str:
    if row is None:
        return ""
    if row.seconds is None:
        return row.status
    ratio = f"{row.ratio:.2f}x" if row.ratio and not first else ""
    peak = f"{row.peak_bytes / 1e6:.1f} MB" if row.peak_bytes is not None else ""
    inside = ", ".join(part for part in (ratio, peak) if part)
    return milliseconds(row.seconds) + (f" ({inside})" if inside else "")


def milliseconds(seconds: float) -> str:
    """Three significant digits or more."""
    value = seconds * 1e3
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 1 else 4
    return f"{value:.{digits}f}"


def count(value: float) -> str:
    """A rate in thousands or millions."""
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.1f}k" if value >= 1e3 else f"{value:.1f}"


def _threads(row: Row) -> str:
    return "" if row.threads == 0 else f"{row.threads} thread{'s' if row.threads > 1 else ''}"

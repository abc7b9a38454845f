"""Rows as a table for the terminal and as a table for a document."""

from typing import List, Optional, Sequence

from benchmarks.rows import Row


def table(rows: Sequence[Row]) -> str:
    """The lines of one case: a heading, one line for a side, notes."""
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
    """All cases, one line for a side."""
    lines = [
        "| case | side | ms | times ours | tokens/s | share of floor | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    notes: List[str] = []
    case: Optional[tuple] = None
    for row in rows:
        parts = (row.op, row.shape, row.dtype, row.work, _threads(row))
        name = "" if row.case == case else ", ".join(part for part in parts if part)
        case = row.case
        if row.seconds is None:
            lines.append(f"| {name} | {row.side} | {row.status}: {row.reason} | | | | |")
        else:
            cells = (
                milliseconds(row.seconds),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                "" if row.tokens_per_second is None else count(row.tokens_per_second),
                "" if row.share is None else f"{row.share:.2f}",
                "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}",
            )
            lines.append(f"| {name} | {row.side} | " + " | ".join(cells) + " |")
        if row.goal:
            notes.append(f"- {', '.join(part for part in parts if part)}; {row.side}: {row.goal}")
    return "\n".join(lines + ([""] + notes if notes else []))


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

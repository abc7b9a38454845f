"""Progress: a bar on a terminal, otherwise a line from time to time."""

import logging
import time
from typing import Any, Optional

__all__ = ["Progress"]

log = logging.getLogger(__name__)

EVERY = 15.0
"""Seconds between two lines."""


class Progress:
    """Counts sequences; used with ``with``.

    Args:
        total: sequences to do.
        show: False shows nothing.
    """

    def __init__(self, total: int, show: bool) -> None:
        self.total, self.show = total, show and total > 0
        self.done = self.tokens = 0
        self._bar: Any = None
        self._start = self._said = time.perf_counter()

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        if self.show and console.is_terminal:
            columns = (TextColumn("encode"), BarColumn(bar_width=None), MofNCompleteColumn(),
                       TextColumn("sequences  {task.fields[rate]}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=console, expand=True)
            self._bar.add_task("encode", total=self.total, rate="")
            self._bar.start()
        return self

    def add(self, sequences: int, tokens: int) -> None:
        """Count further sequences as done."""
        self.done += sequences
        self.tokens += tokens
        now = time.perf_counter()
        rate = f"{self.tokens / max(now - self._start, 1e-9):,.0f} steps/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rate=rate)
        elif self.show and now - self._said >= EVERY:
            log.info("%d of %d sequences, %s", self.done, self.total, rate)
            self._said = now

    def __exit__(self, kind: Optional[Any], error: Any, trace: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

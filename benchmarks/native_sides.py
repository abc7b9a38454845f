"""The two sides of the benchmarks of the compiled CPU kernels: with the kernels, and without."""

import contextlib
from typing import Any, Callable, Iterator, List, Optional, Sequence

from benchmarks.inputs import largest_error
from benchmarks.measure import Missing, Side, Work, time_in_turn
from benchmarks.peers import OURS
from benchmarks.rows import Options, Row, rows_of

NATIVE = "myfla native"


def both(make: Callable[[], Work]) -> List[Side]:
    """Work in plain PyTorch, and the same with the compiled kernels."""

    def native() -> Work:
        need_native()
        return make()

    def plain() -> Work:
        with plain_only():
            work = make()

        def run() -> Any:
            with plain_only():
                return work()

        return run

    return [Side(OURS, plain), Side(NATIVE, native)]


def rows(sides: Sequence[Side], options: Options, threads: int, **case: Any) -> List[Row]:
    """The sides' lines, timed in turn."""
    timings = time_in_turn(sides, options.rounds, options.patience, "cpu", largest_error)
    return rows_of(timings, [side.name for side in sides], threads == 1, section="native", dtype="float32",
                   threads=threads, **case)  # fmt: skip


def add_goal(lines: Sequence[Row], goal: Optional[float], against: str = OURS, name: str = "the plain form") -> None:
    """The speed of the compiled kernels as a multiple of another side's."""
    by_side = {row.side: row for row in lines}
    row, other = by_side[NATIVE], by_side[against]
    if goal and row.seconds and other.seconds:
        row.goal = f"{other.seconds / row.seconds:.2f}x the speed of {name} (goal: {goal:g}x)"


def need_native() -> None:
    """Raise `Missing` where the compiled kernels are not installed."""
    from myfla.utils.native import missing_native

    reason = missing_native()
    if reason is not None:
        raise Missing(reason)


@contextlib.contextmanager
def plain_only() -> Iterator[None]:
    """Hide the compiled kernels from all code, as if they were not installed: the parts of a layer use them too."""
    from myfla.utils import native as door

    found = door._installed
    setattr(door, "_installed", lambda: (None, "left out"))
    try:
        yield
    finally:
        setattr(door, "_installed", found)

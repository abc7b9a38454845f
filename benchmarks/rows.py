"""One measured line, and how the timings of a case become lines."""

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence

from benchmarks.measure import Timing, median
from benchmarks.peers import OURS


@dataclass
class Options:
    """The options of the command line."""

    device: str = "cpu"
    threads: Sequence[int] = (1,)
    quick: bool = False
    rounds: int = 7
    patience: float = 20.0
    compile: bool = False
    memory: bool = True
    only: Sequence[str] = ()


@dataclass
class Row:
    """One side of one case. Times are seconds for one run; ``ratio`` is this side's time over ours,
    or over that of the first side where ours is not among them."""

    section: str
    op: str
    shape: str
    work: str
    dtype: str
    threads: int
    side: str
    status: str = "ok"
    reason: str = ""
    seconds: Optional[float] = None
    fastest: Optional[float] = None
    wall: Optional[float] = None
    process: Optional[float] = None
    samples: int = 0
    ratio: Optional[float] = None
    tokens_per_second: Optional[float] = None
    floor: Optional[float] = None
    share: Optional[float] = None
    share_dense: Optional[float] = None
    peak_bytes: Optional[float] = None
    error: Optional[float] = None
    goal: str = ""
    note: str = ""

    def to_json(self) -> Dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name == "dtype" or value not in (None, "")}

    @property
    def case(self) -> tuple:
        return self.section, self.op, self.shape, self.work, self.dtype, self.threads


def rows_of(
    timings: Dict[str, Timing],
    sides: Sequence[str],
    process: bool,
    tokens: int = 0,
    floor: Optional[float] = None,
    **case: Any,
) -> List[Row]:
    """Lines of the given sides.

    Args:
        timings: as `time_in_turn` returns them.
        sides: those with a line, in this order.
        process: take process time as the time (one thread of a CPU), instead of wall time.
        tokens: tokens of one run.
        floor: seconds of the floor.
        **case: the other fields of `Row`.
    """
    base = median(timings[OURS if OURS in timings else sides[0]].samples(process))
    rows = []
    for name in sides:
        timing = timings[name]
        seconds = median(timing.samples(process))
        row = Row(side=name, status=timing.status, reason=timing.reason, **case)
        if seconds is not None:
            row.seconds, row.fastest, row.samples = seconds, min(timing.samples(process)), len(timing.wall)
            row.wall, row.process = median(timing.wall), median(timing.process)
            row.error = timing.error
            row.ratio = seconds / base if base else None
            row.tokens_per_second = tokens / seconds if tokens else None
            row.floor = floor
            row.share = floor / seconds if floor else None
        rows.append(row)
    return rows

"""Time several ways of doing the same work in turn, so that other load on the machine affects all of them."""

import gc
import math
import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

Work = Callable[[], Any]

SHORTEST = 0.02
"""The shortest time of a sample in seconds; shorter work is repeated within the sample."""


class Missing(Exception):
    """Raised for work that cannot be run here; the message says why."""


class TooSlow(Missing):
    """Raised for work that would take too long; the message says what was too slow, and when."""


class Side(NamedTuple):
    """One way of doing the work: ``make`` returns what is timed, or raises `Missing`."""

    name: str
    make: Callable[[], Work]


class Timing:
    """Samples of one side: seconds for one run, by the wall (on a GPU: the device's) clock and in process time.

    ``status`` is "ok", "missing" (cannot be run here), "not run" (would take too long) or "failed"; ``reason`` tells
    why.
    """

    def __init__(self) -> None:
        self.wall: List[float] = []
        self.process: List[float] = []
        self.status, self.reason = "ok", ""
        self.repeat = 1
        self.spent = 0.0
        self.error: Optional[float] = None

    def give_up(self, error: BaseException) -> None:
        kinds = ((TooSlow, "not run"), (Missing, "missing"), (Exception, "failed"))
        self.status = next(status for kind, status in kinds if isinstance(error, kind))
        text = str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {error}"
        self.reason = " ".join(text.split())[:200]

    def samples(self, process: bool) -> List[float]:
        return self.process if process else self.wall


def time_in_turn(
    sides: Sequence[Side],
    rounds: int,
    patience: float,
    device: str,
    compare: Optional[Callable[[Any, Any], float]] = None,
) -> Dict[str, Timing]:
    """One sample of every side, ``rounds`` times over.

    Args:
        sides: what to time. Each runs untimed first.
        rounds: samples of each side.
        patience: seconds after which a side gets no more samples (but at least two, or one if one takes longer).
        device: "cpu" or "cuda".
        compare: error of a side's untimed result against the first side's.

    Returns:
        A `Timing` for every side, also for those that could not run.
    """
    timings = {side.name: Timing() for side in sides}
    works: Dict[str, Work] = {}
    reference: Any = None
    for side in sides:
        timing = timings[side.name]
        try:
            work = side.make()
            start = time.perf_counter()
            result = work()
            once = time.perf_counter() - start
            if compare is not None and result is not None:  # before the state changes in place
                reference = result if reference is None else reference
                timing.error = None if result is reference else compare(result, reference)
            if once < 1.0:  # a slow run is slow the next times too
                # Two: while the last result is still kept, one run may have to use memory for the first time.
                once = min(_sample(work, 1, device)[0] for _ in range(2))
        except Exception as error:
            timing.give_up(error)
            continue
        timing.repeat = max(1, math.ceil(SHORTEST / max(once, 1e-9)))
        works[side.name] = work
    del reference
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, work in works.items():
                timing = timings[name]
                enough = 1 if timing.wall and timing.wall[0] > patience else 2
                if timing.spent > patience and len(timing.wall) >= enough:
                    continue
                wall, process = _sample(work, timing.repeat, device)
                timing.wall.append(wall / timing.repeat)
                timing.process.append(process / timing.repeat)
                timing.spent += wall
    finally:
        gc.enable()
    return timings


def _sample(work: Work, repeat: int, device: str) -> Tuple[float, float]:
    """Wall (on a GPU: device) and process seconds of ``repeat`` runs."""
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        process = time.process_time()
        start.record()
        for _ in range(repeat):
            work()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3, time.process_time() - process
    process, wall = time.process_time(), time.perf_counter()
    for _ in range(repeat):
        work()
    return time.perf_counter() - wall, time.process_time() - process


def median(samples: Sequence[float]) -> Optional[float]:
    return statistics.median(samples) if samples else None


GEMM_SIDE, COPY_SIDE = "matrix product", "copy"


def product_side(device: str, dtype: torch.dtype) -> Tuple[Side, float]:
    """A large square matrix product, whose rate is used for the floors, and its flops."""
    size = 1024 if device == "cpu" else 8192

    def make() -> Work:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def work() -> None:
            torch.mm(a, b, out=out)

        return work

    return Side(GEMM_SIDE, make), 2.0 * size**3


def copy_side(device: str, elements: int) -> Tuple[Side, float]:
    """A copy of as many float32 numbers as the work uses, and the bytes that it reads and writes."""

    def make() -> Work:
        source = torch.randn(elements, device=device)
        target = torch.empty_like(source)

        def work() -> None:
            target.copy_(source)

        return work

    return Side(COPY_SIDE, make), 8.0 * elements

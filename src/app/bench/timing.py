"""Samples of several calls in turn, so that other work on the machine affects all of them alike."""

import gc
import math
import statistics
import time
from typing import Callable, Dict, List, NamedTuple

__all__ = ["SHORTEST", "Timing", "time_in_turn"]

SHORTEST = 0.02
"""Seconds one sample lasts at least; a quicker call is repeated within the sample."""


class Timing(NamedTuple):
    """Seconds for one call.

    Attributes:
        median: over all samples.
        low, high: first and third quartile.
        samples: how many, each the mean of ``repeat`` calls.
        repeat: calls in a sample.
    """

    median: float
    low: float
    high: float
    samples: int
    repeat: int


def time_in_turn(calls: Dict[str, Callable[[], None]], rounds: int) -> Dict[str, Timing]:
    """One sample of every call, ``rounds`` times over.

    Args:
        calls: by name; each runs twice untimed first, and returns when its device is done.
        rounds: samples of each, at least 3.
    """
    repeats: Dict[str, int] = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, math.ceil(SHORTEST / max(_sample(call, 1), 1e-9)))
    samples: Dict[str, List[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()  # garbage collection would slow down single samples
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(_sample(call, repeats[name]) / repeats[name])
    finally:
        gc.enable()
    return {name: _timing(samples[name], repeats[name]) for name in calls}


def _sample(call: Callable[[], None], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return time.perf_counter() - start


def _timing(samples: List[float], repeat: int) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples), repeat)

"""Time and peak memory against length: both must grow in proportion."""

from typing import Dict, Iterable, Iterator, List, Tuple

import torch

from benchmarks.inputs import INPUTS, WORKS
from benchmarks.measure import Side, TooSlow, Work, median, time_in_turn
from benchmarks.memory import peaks
from benchmarks.peers import OURS, TRANSFORMERS
from benchmarks.registry import load_op
from benchmarks.rows import Options, Row, rows_of

HEADS, SIZE = 4, 64
LENGTHS = tuple(2**power for power in range(6, 18))  # 64 .. 131 072
SIDES: Dict[str, Tuple[str, ...]] = {
    "gated delta rule": (OURS, TRANSFORMERS, "fla naive chunk", "token loop"),
    "RWKV-7": (OURS, "fla naive chunk", "token loop"),
}
LIMIT, PEER_LIMIT = 15.0, 4.0
"""Seconds that one run of ours, or of a peer, may take, estimated from the last length; longer runs are not started."""


def run(options: Options) -> Iterator[List[Row]]:
    """Every op, work and length on one thread; yields the lines of each length, memory last."""
    torch.set_num_threads(1)
    lengths = (64, 128) if options.quick else LENGTHS
    for op in _wanted(SIDES, options):
        for work in _wanted(WORKS, options):
            last: Dict[str, float] = {}
            rows = [_case(op, work, tokens, last, options) for tokens in lengths]
            if options.memory and options.device == "cpu":
                _add_peaks(op, work, rows, options)
            yield from rows


def _wanted(names: Iterable[str], options: Options) -> List[str]:
    """The names that ``--only`` selects; all without it."""
    return [name for name in names if name in options.only] or list(names)


def _case(op: str, work: str, tokens: int, last: Dict[str, float], options: Options) -> List[Row]:
    """``last`` holds each side's seconds at half this length, and is updated."""
    shape = (1, tokens, HEADS, 16 if options.quick else SIZE)
    sides = [Side(name, _maker(op, name, work, shape, last, options)) for name in SIDES[op]]
    rounds = options.rounds if tokens <= 4096 else min(options.rounds, 3)
    timings = time_in_turn(sides, rounds, options.patience / 4, options.device)
    for name, timing in timings.items():
        if timing.wall:
            last[name] = median(timing.samples(options.device == "cpu"))
    return rows_of(
        timings, [side.name for side in sides], options.device == "cpu", tokens=tokens, section="scaling", op=op,
        shape=" x ".join(map(str, shape)), work=work, dtype=_dtype(options), threads=1,
    )  # fmt: skip


def _maker(op: str, name: str, work: str, shape: Tuple[int, ...], last: Dict[str, float], options: Options):
    def make() -> Work:
        if shape[1] > LENGTHS[0] and name not in last:
            raise TooSlow("too slow at a smaller length, or not there")
        if 2.5 * last.get(name, 0.0) > (LIMIT if name == OURS else PEER_LIMIT):
            seconds = last.pop(name)
            raise TooSlow(f"{seconds:.0f} s at half the length")
        inputs = INPUTS[op](*shape, getattr(torch, _dtype(options)), options.device)
        return WORKS[work](load_op(op, name), inputs)

    return make


def _add_peaks(op: str, work: str, rows: List[List[Row]], options: Options) -> None:
    """Peak memory of ours and the first peer, each in one process for all its lengths."""
    for name in SIDES[op][:2]:
        own = [row for case in rows for row in case if row.side == name and row.status == "ok"]
        if not own:
            continue
        shapes = [[int(part) for part in row.shape.split(" x ")] for row in own]
        spec = dict(op=op, side=name, work=work, dtype="float32", threads=1, shapes=shapes)
        found, reason = peaks(spec, timeout=12 * LIMIT)
        for row, peak in zip(own, found):
            row.peak_bytes = peak
        for row in own[len(found) :]:
            row.note = f"memory: {reason}"


def _dtype(options: Options) -> str:
    return "float32" if options.device == "cpu" else "bfloat16"

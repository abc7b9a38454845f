"""The operations on a CPU: forward, and forward with backward, compared with every other implementation."""

from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from benchmarks.floors import dense_flops, op_flops
from benchmarks.inputs import INPUTS, WORKS, largest_error
from benchmarks.measure import GEMM_SIDE, Side, TooSlow, Work, median, product_side, time_in_turn
from benchmarks.memory import peaks
from benchmarks.peers import OURS, TRANSFORMERS
from benchmarks.registry import OPS, load_op
from benchmarks.rows import Options, Row, rows_of

Shape = Tuple[int, int, int, int]

SHAPES: Dict[str, Sequence[Shape]] = {
    "gated delta rule": ((8, 128, 4, 32), (2, 512, 4, 64), (1, 2048, 4, 128), (1, 4096, 16, 128)),
    "RWKV-7": ((8, 128, 4, 32), (2, 512, 4, 64), (1, 2048, 4, 64)),
}
QUICK: Dict[str, Sequence[Shape]] = {"gated delta rule": ((1, 40, 2, 16),), "RWKV-7": ((1, 64, 2, 16),)}
SECTION = {"gated delta rule": "ops", "RWKV-7": "rwkv7"}
RIVALS = {"gated delta rule": (TRANSFORMERS,), "RWKV-7": ("fla naive chunk", "token loop")}
"""The implementations to which goals refer; where there are several, the faster one."""

GOALS: Dict[Tuple[str, str], Sequence[float]] = {
    ("gated delta rule", "forward"): (2.5, 2.3, 2.5, 3.0),
    ("gated delta rule", "forward + backward"): (3.2, 3.0, 3.2, 12.0),
    ("RWKV-7", "forward"): (2.5, 3.5, 5.0),
    ("RWKV-7", "forward + backward"): (5.0, 10.0, 12.0),
}
SHARES = {"forward": 0.55, "forward + backward": 0.5}
LONGEST_LOOP = {"forward": 2048, "forward + backward": 512}
"""Token loops run up to this length; that of RWKV-7, to which a goal refers, always up to 2048."""


def run(options: Options) -> Iterator[List[Row]]:
    """Every shape of the gated delta rule, then bfloat16; yields the lines of each case."""
    for threads in options.threads:
        yield from _shapes("gated delta rule", threads, options)
        for shape in (QUICK if options.quick else SHAPES)["gated delta rule"][-2:]:
            for work in WORKS:
                yield _half_case(shape, work, threads, options)


def run_rwkv7(options: Options) -> Iterator[List[Row]]:
    """Every shape of RWKV-7's op."""
    for threads in options.threads:
        yield from _shapes("RWKV-7", threads, options)


def _shapes(op: str, threads: int, options: Options) -> Iterator[List[Row]]:
    torch.set_num_threads(threads)
    for index, shape in enumerate((QUICK if options.quick else SHAPES)[op]):
        for work in WORKS:
            yield _case(op, shape, work, threads, options, None if options.quick else GOALS[op, work][index])


def _case(op: str, shape: Shape, work: str, threads: int, options: Options, goal: Optional[float]) -> List[Row]:
    names = [name for name in OPS[op] if name != "fla Triton"]
    sides = [Side(name, _maker(op, name, shape, work, torch.float32)) for name in names]
    product, flops = product_side("cpu", torch.float32)
    timings = time_in_turn([*sides, product], options.rounds, options.patience, "cpu", largest_error)
    process = threads == 1
    size = (*shape, shape[-1], work != "forward")
    least, dense = op_flops(op, *size), dense_flops(op, *size)
    rate = flops / median(timings[GEMM_SIDE].samples(process))
    rows = rows_of(
        timings, names, process, tokens=shape[0] * shape[1], floor=least / rate, section=SECTION[op], op=op,
        shape=name_shape(shape), work=work, dtype="float32", threads=threads,
        note=f"floor: {least / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s; dense products: {dense / 1e9:.2f} GFLOP",
    )  # fmt: skip
    for row in rows:
        row.share_dense = dense / rate / row.seconds if row.seconds else None
    largest = shape == SHAPES[op][-1] and op == "gated delta rule"
    if options.memory and threads == 1 and work != "forward":
        _add_peaks(rows, op, shape, work, (OURS, *RIVALS[op]), options)
    if goal is not None:
        rows[0].goal = _goal(rows, RIVALS[op], goal, SHARES[work] if largest else None)
    return rows


def _half_case(shape: Shape, work: str, threads: int, options: Options) -> List[Row]:
    """Ours on bfloat16 inputs against ours on float32."""
    sides = [
        Side(OURS, _maker("gated delta rule", OURS, shape, work, torch.bfloat16)),
        Side("myfla float32", _maker("gated delta rule", OURS, shape, work, torch.float32)),
        Side(TRANSFORMERS, _maker("gated delta rule", TRANSFORMERS, shape, work, torch.bfloat16)),
    ]
    timings = time_in_turn(sides, options.rounds, options.patience, "cpu", largest_error)
    rows = rows_of(
        timings, [side.name for side in sides], threads == 1, tokens=shape[0] * shape[1], section="ops",
        op="gated delta rule", shape=name_shape(shape), work=work, dtype="bfloat16", threads=threads,
    )  # fmt: skip
    if rows[1].ratio:
        rows[0].goal = f"{1 / rows[1].ratio:.2f} of the float32 time (goal: at most 1.2; below 1 with bf16 units)"
    return rows


def _maker(op: str, name: str, shape: Shape, work: str, dtype: torch.dtype) -> Callable[[], Work]:
    def make() -> Work:
        loop = ("recurrent" in name or name in ("token loop", "rwkv_ops")) and name not in RIVALS[op]
        if loop and shape[1] > LONGEST_LOOP[work]:
            raise TooSlow(f"token by token, {work}, T > {LONGEST_LOOP[work]}")
        return WORKS[work](load_op(op, name), INPUTS[op](*shape, dtype, "cpu"))

    return make


def _add_peaks(rows: List[Row], op: str, shape: Shape, work: str, names: Sequence[str], options: Options) -> None:
    for row in rows:
        if row.side in names and row.status == "ok":
            spec = dict(op=op, side=row.side, work=work, dtype="float32", threads=row.threads, shapes=[shape])
            found, reason = peaks(spec, timeout=10 * options.patience + 60)
            row.peak_bytes = found[0] if found else None
            row.note += f"; memory: {reason}" if reason else ""


def _goal(rows: List[Row], rivals: Sequence[str], goal: float, share: Optional[float]) -> str:
    """A text with the speed relative to the faster one of the other implementations."""
    ratios = [row.ratio for row in rows if row.side in rivals and row.ratio]
    text = f"{min(ratios):.2f}x the speed of {' / '.join(rivals)} (goal: {goal:g}x)" if ratios else ""
    if share is not None and rows[0].share:
        reached = f"{rows[0].share:.2f} of the floor, {rows[0].share_dense:.2f} of it in dense products"
        text += f"{', ' if text else ''}{reached} (goal: {share:g})"
        theirs = [row.peak_bytes for row in rows if row.side in rivals and row.peak_bytes]
        if rows[0].peak_bytes and theirs:
            text += f", {rows[0].peak_bytes / min(theirs):.2f} of its peak memory (goal: at most 0.33)"
    return text


def name_shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

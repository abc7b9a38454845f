"""The ops on a CUDA GPU in bfloat16: eager, in a CUDA graph, compiled, beside the official Triton kernels."""

from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from benchmarks.cases_ops import Shape, name_shape
from benchmarks.floors import op_flops
from benchmarks.inputs import INPUTS, WORKS, Tensors, largest_error
from benchmarks.measure import COPY_SIDE, GEMM_SIDE, Side, Work, copy_side, median, product_side, time_in_turn
from benchmarks.peers import OURS, TRANSFORMERS, TRITON
from benchmarks.registry import COMPILED, load_op
from benchmarks.rows import Options, Row, rows_of

GRAPH = ", CUDA graph"
RECORDED = "fla Triton (H200, Triton 3.7.1, 2026-11-23)"
"""Milliseconds measured once, for where the official backward refuses to run: forward, forward + backward."""

SHAPES: Dict[str, Dict[Shape, Tuple[float, float]]] = {
    "gated delta rule": {
        (8, 2048, 16, 128): (0.449, 1.95),
        (32, 512, 8, 64): (0.425, 2.03),
        (1, 4096, 16, 128): (0.98, 2.45),
        (1, 16384, 16, 128): (0.639, 2.73),
    },
    "RWKV-7": {(8, 2048, 16, 64): (0.66, 2.58), (1, 16384, 16, 64): (1.35, 4.39)},
}
GOALS: Dict[str, Dict[Shape, float]] = {
    "gated delta rule": {
        (8, 2048, 16, 128): 2.0, (32, 512, 8, 64): 1.5, (1, 4096, 16, 128): 1.0, (1, 16384, 16, 128): 3.0,
    },
    "RWKV-7": {(8, 2048, 16, 64): 2.0, (1, 16384, 16, 64): 1.0},
}  # fmt: skip
"""Our best time in multiples of the official one, at most."""

EAGER_GOAL = {(8, 2048, 16, 128): 5.0}
"""Times faster than transformers' chunk form, in plain eager calls, at least."""

QUICK: Dict[str, Dict[Shape, Tuple[float, float]]] = {
    "gated delta rule": {(1, 256, 2, 64): (0.0, 0.0)},
    "RWKV-7": {(1, 256, 2, 64): (0.0, 0.0)},
}


def run(options: Options) -> Iterator[List[Row]]:
    """Every shape and work of both ops; yields the lines of each."""
    for op, shapes in (QUICK if options.quick else SHAPES).items():
        for shape, recorded in shapes.items():
            for index, work in enumerate(WORKS):
                yield _case(op, shape, work, recorded[index] / 1e3, options)
                torch.cuda.empty_cache()


def _case(op: str, shape: Shape, work: str, recorded: float, options: Options) -> List[Row]:
    inputs = INPUTS[op](*shape, torch.bfloat16, "cuda")
    names = [OURS, OURS + GRAPH]
    names += [OURS + COMPILED + GRAPH, OURS + COMPILED] if options.compile else []  # the last stays compiled
    if op == "gated delta rule":
        names += [TRITON, TRITON + GRAPH] if work == "forward" else [TRITON]
        names += [TRANSFORMERS]
    # The official chunk_rwkv7 tries kernels out for minutes before the first result: its recorded times stand alone.
    peaks: Dict[str, float] = {}
    sides = [Side(name, _maker(op, name, work, inputs, peaks)) for name in names]
    product, flops = product_side("cuda", torch.bfloat16)
    copy, moved = copy_side("cuda", 2**28)
    timings = time_in_turn([*sides, product, copy], options.rounds, options.patience, "cuda", largest_error)
    least, traffic = op_flops(op, *shape, shape[-1], backward=work != "forward"), least_bytes(inputs, work)
    rate, speed = flops / median(timings[GEMM_SIDE].wall), moved / median(timings[COPY_SIDE].wall)
    rows = rows_of(
        timings, names, False, tokens=shape[0] * shape[1], floor=max(least / rate, traffic / speed), section="ops",
        op=op, shape=name_shape(shape), work=work, dtype="bfloat16", threads=0,
        note=f"floor: {least / 1e9:.1f} GFLOP at {rate / 1e12:.0f} TFLOP/s or {traffic / 1e6:.0f} MB at "
        f"{speed / 1e12:.2f} TB/s",
    )  # fmt: skip
    for row in rows:
        row.peak_bytes = peaks.get(row.side)
    if recorded:
        ratio = recorded / rows[0].seconds if rows[0].seconds else None
        rows.append(Row(*rows[0].case, RECORDED, seconds=recorded, ratio=ratio, note="not measured in this run"))
        _compare(rows, GOALS[op][shape], EAGER_GOAL.get(shape))
    return rows


def _compare(rows: List[Row], goal: float, eager: Optional[float]) -> None:
    """What was reached, beside what was aimed at."""
    by_name = {row.side: row.seconds for row in rows if row.seconds}
    best = min((row for row in rows if row.side.startswith(OURS) and row.seconds), key=lambda row: row.seconds)
    reached = [f"{best.seconds / by_name[name]:.2f}x {name}" for name in (RECORDED, TRITON + GRAPH) if name in by_name]
    best.goal = f"takes {', '.join(reached)} (goal: at most {goal:g}x official)"
    if eager and OURS in by_name and TRANSFORMERS in by_name:
        times = f"{by_name[TRANSFORMERS] / by_name[OURS]:.1f}x the speed of {TRANSFORMERS} (goal: {eager:g}x)"
        rows[0].goal = f"{rows[0].goal}; {times}" if rows[0].goal else times


def least_bytes(inputs: Sequence[torch.Tensor], work: str) -> float:
    """Bytes if every input and output moved once: the inputs and o; for the backward also dO and the gradients."""
    read = sum(x.numel() * x.element_size() for x in inputs)
    output = inputs[2].numel() * inputs[2].element_size()
    return float(read + output if work == "forward" else 3 * read + 2 * output)


def _maker(op: str, name: str, work: str, inputs: Tensors, peaks: Dict[str, float]) -> Callable[[], Work]:
    def make() -> Work:
        graph = name.endswith(GRAPH)
        plain = WORKS[work](load_op(op, name[: -len(GRAPH)] if graph else name), inputs)
        plain()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ready = graphed(plain) if graph else plain
        ready()
        peaks[name] = float(torch.cuda.max_memory_allocated() - before)
        return ready

    return make


def graphed(work: Work) -> Work:
    """Capture the work once; the result replays it and returns the captured tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()

    def replay():
        graph.replay()
        return outputs

    return replay

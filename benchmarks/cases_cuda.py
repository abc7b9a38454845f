"""The operations on a CUDA GPU in bfloat16: eager, in a CUDA graph, compiled, compared with the official kernels."""

from typing import Callable, Dict, Iterator, List, Sequence

import torch

from benchmarks.cases_ops import Shape, name_shape
from benchmarks.floors import op_flops
from benchmarks.inputs import INPUTS, WORKS, Tensors, largest_error
from benchmarks.measure import COPY_SIDE, GEMM_SIDE, Side, Work, copy_side, median, product_side, time_in_turn
from benchmarks.peers import OURS, TRANSFORMERS, TRITON
from benchmarks.registry import COMPILED, load_op
from benchmarks.rows import Options, Row, rows_of

GRAPH = ", CUDA graph"
SHAPES: Dict[str, Sequence[Shape]] = {
    "gated delta rule": ((8, 2048, 16, 128), (32, 512, 8, 64), (1, 4096, 16, 128), (1, 16384, 16, 128)),
    "RWKV-7": ((8, 2048, 16, 64), (1, 16384, 16, 64)),
}
QUICK: Dict[str, Sequence[Shape]] = {"gated delta rule": ((1, 256, 2, 64),), "RWKV-7": ((1, 256, 2, 64),)}


def run(options: Options) -> Iterator[List[Row]]:
    """All shapes and works of both ops; yields the lines of each."""
    for op, shapes in (QUICK if options.quick else SHAPES).items():
        for shape in shapes:
            for work in WORKS:
                yield _case(op, shape, work, options)
                torch.cuda.empty_cache()


def _case(op: str, shape: Shape, work: str, options: Options) -> List[Row]:
    inputs = INPUTS[op](*shape, torch.bfloat16, "cuda")
    names = [OURS, OURS + GRAPH]
    names += [OURS + COMPILED + GRAPH, OURS + COMPILED] if options.compile else []  # the last stays compiled
    if op == "gated delta rule":
        names += [TRITON, TRITON + GRAPH, TRANSFORMERS]
    # The official chunk_rwkv7 is not measured: it tunes kernels for minutes before the first result.
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
    return rows


def least_bytes(inputs: Sequence[torch.Tensor], work: str) -> float:
    """Bytes if every input and output is moved once: the inputs and o; for the backward also dO and the gradients."""
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

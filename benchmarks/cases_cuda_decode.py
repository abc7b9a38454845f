"""A decoding step on a CUDA GPU, eager and in a CUDA graph, compared with the official Triton kernel."""

from typing import Any, Callable, Dict, Iterator, List

import torch

from benchmarks.cases_cuda import GRAPH, graphed
from benchmarks.cases_decode import HEADS, IN_PLACE, RIVAL, SIZE, UNIT, ours, ours_in_place, transformers
from benchmarks.floors import state_bytes
from benchmarks.inputs import gated_inputs, largest_error
from benchmarks.measure import COPY_SIDE, Missing, Side, Work, copy_side, median, time_in_turn
from benchmarks.peers import OURS, TRITON, optional
from benchmarks.rows import Options, Row, rows_of

BATCHES = (1, 32, 256)

FUSED, FUSED_V_FIRST = IN_PLACE + ", compiled", IN_PLACE + ", compiled, state value-first"


def run(options: Options) -> Iterator[List[Row]]:
    """Every batch; yields the lines of each."""
    for batch in (1,) if options.quick else BATCHES:
        yield _case(batch, options)


def _case(batch: int, options: Options) -> List[Row]:
    inputs = gated_inputs(batch, 1, HEADS, SIZE, torch.bfloat16, "cuda")
    state = torch.randn(batch, HEADS, SIZE, SIZE, device="cuda")
    if options.compile:
        torch._dynamo.reset()  # for this batch alone
    makers: Dict[str, Callable[..., Any]] = {OURS: ours, IN_PLACE: ours_in_place}
    makers.update({FUSED: _compiled, FUSED_V_FIRST: _compiled_v_first} if options.compile else {})
    makers.update({TRITON: _triton, RIVAL: transformers})
    sides = []
    for name, maker in makers.items():
        given = state.transpose(2, 3).contiguous() if name == FUSED_V_FIRST else state
        sides.append(Side(name, _maker(maker, inputs, given, False)))
        sides.append(Side(name + GRAPH, _maker(maker, inputs, given, True)))
    copy, moved = copy_side("cuda", 2**28)  # larger than the cache: a step's state was not just written
    timings = time_in_turn([*sides, copy], options.rounds, options.patience, "cuda", _error)
    speed = moved / median(timings[COPY_SIDE].wall)
    floor = state_bytes(batch, HEADS, SIZE, SIZE) / speed
    return rows_of(
        timings, [side.name for side in sides], False, tokens=batch, floor=floor,
        section="decode", op="gated delta rule", shape=f"{batch} x {HEADS} x {SIZE} x {SIZE}", work="step",
        dtype="bfloat16", threads=0, note=f"floor: the state read and written at {speed / 1e12:.2f} TB/s",
    )  # fmt: skip


def _error(got: Any, want: Any) -> float:
    """The error of the output only: a state in place changes from step to step, and one is stored value-first."""
    return largest_error(got[:1], want[:1])


def _compiled(**more: Any) -> Callable[..., Any]:
    from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as op

    more = {**UNIT, "output_final_state": True, "inplace_final_state": True, "backend": "compiled", **more}
    return lambda q, k, v, g, beta, s: op(q, k, v, g=g, beta=beta, initial_state=s, **more)


def _compiled_v_first() -> Callable[..., Any]:
    return _compiled(state_v_first=True)


def _triton() -> Callable[..., Any]:
    if not torch.cuda.is_available():
        raise Missing("no CUDA GPU")
    op = optional("fla.ops.gated_delta_rule").fused_recurrent_gated_delta_rule
    return lambda q, k, v, g, beta, s: op(q, k, v, g=g, beta=beta, initial_state=s, output_final_state=True, **UNIT)


def _maker(maker: Callable[..., Any], inputs: Any, state: torch.Tensor, graph: bool) -> Callable[[], Work]:
    def make() -> Work:
        step, own = maker(), state.clone()

        def work() -> Any:
            with torch.no_grad():
                return step(*inputs, own)

        work()
        ready = graphed(work) if graph else work
        own.copy_(state)
        return ready

    return make

"""One decoding step: the gated delta rule from a state of 16 heads of 128 x 128, RWKV-7 of 64 x 64."""

import inspect
from typing import Any, Callable, Iterator, List, Tuple

import torch

from benchmarks.floors import state_bytes
from benchmarks.inputs import INPUTS, largest_error
from benchmarks.measure import COPY_SIDE, Missing, Side, Work, copy_side, median, time_in_turn
from benchmarks.peers import OURS, fla_file, qwen3_next, rwkv_ops, unit
from benchmarks.peers_rwkv7 import RWKV7_STEPS
from benchmarks.rows import Options, Row, rows_of

HEADS, SIZE = 16, 128
SIZES = {"gated delta rule": SIZE, "RWKV-7": 64}
GOALS = {1: (2.7, 3.0), 8: (6.0, 7.0), 64: (8.0, 12.0)}
"""For each batch: out of place and in place, against transformers' recurrent form."""

UNIT = {"use_qk_l2norm_in_kernel": True}
OWN = {**UNIT, "backend": "torch"}
IN_PLACE, RIVAL = "myfla in place", "transformers recurrent"


def run(options: Options) -> Iterator[List[Row]]:
    """Every batch of both rules; yields the lines of each."""
    for op, size in SIZES.items():
        heads, size = (2, 16) if options.quick else (HEADS, size)
        for threads in options.threads:
            torch.set_num_threads(threads)
            for batch in (1,) if options.quick else tuple(GOALS):
                yield _case(op, batch, heads, size, threads, options)


def _case(op: str, batch: int, heads: int, size: int, threads: int, options: Options) -> List[Row]:
    inputs = INPUTS[op](batch, 1, heads, size, torch.float32, "cpu")
    state = torch.randn(batch, heads, size, size)
    makers = STEPS[op]
    sides = [Side(name, _maker(maker, inputs, state)) for name, maker in makers.items()]
    copy, moved = copy_side("cpu", state.numel())
    timings = time_in_turn([*sides, copy], options.rounds, options.patience, "cpu", largest_error)
    process = threads == 1
    rate = moved / median(timings[COPY_SIDE].samples(process))
    floor = state_bytes(batch, heads, size, size) / rate
    rows = rows_of(
        timings, list(makers), process, tokens=batch, floor=floor, section="decode", op=op,
        shape=f"{batch} x {heads} x {size} x {size}", work="step", dtype="float32", threads=threads,
        note=f"floor: the state read and written at {rate / 1e9:.1f} GB/s, a copy's rate at this size",
    )  # fmt: skip
    peer = next((row.seconds for row in rows if row.side == RIVAL), None)
    for row, goal in zip(rows[:2], GOALS[batch]):
        if peer and row.seconds and not options.quick:
            row.goal = f"{peer / row.seconds:.2f}x the speed of {RIVAL} (goal: {goal:g}x)"
    return rows


def _maker(maker: Callable[[], Callable[..., Tuple[Any, Any]]], inputs: Any, state: torch.Tensor) -> Callable[[], Work]:
    def make() -> Work:
        step, own = maker(), state.clone()

        def work() -> Any:
            with torch.no_grad():
                return step(*inputs, own)

        work()
        own.copy_(state)  # forms that work in place start from the same state as the others
        return work

    return make


def ours() -> Callable[..., Any]:
    from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as op

    return lambda q, k, v, g, beta, s: op(q, k, v, g=g, beta=beta, initial_state=s, output_final_state=True, **OWN)


def ours_in_place() -> Callable[..., Any]:
    from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as op

    names = [name for name in inspect.signature(op).parameters if "inplace" in name or "in_place" in name]
    if not names:
        raise Missing("the op has no in-place form")
    more = {names[0]: True, "output_final_state": True, **OWN}
    return lambda q, k, v, g, beta, s: op(q, k, v, g=g, beta=beta, initial_state=s, **more)


def transformers() -> Callable[..., Any]:
    op = qwen3_next().torch_recurrent_gated_delta_rule
    return lambda q, k, v, g, beta, s: op(q, k, v, g=g, beta=beta, initial_state=s, output_final_state=True, **UNIT)


def _fla() -> Callable[..., Any]:
    op = fla_file("ops/gated_delta_rule/naive.py").naive_recurrent_gated_delta_rule
    return lambda q, k, v, g, beta, s: op(
        unit(q), unit(k), v, g=g, beta=beta, initial_state=s, output_final_state=True
    )


def _rwkv() -> Callable[..., Any]:
    op = rwkv_ops().gated_delta_net_recurrent_single_step

    def step(q, k, v, g, beta, s):
        o, s = op(*(x[:, 0] for x in (q, k, v, g, beta)), initial_state=s, output_final_state=True)
        return o[:, None], s

    return step


STEPS = {
    "gated delta rule": {
        OURS: ours,
        IN_PLACE: ours_in_place,
        RIVAL: transformers,
        "fla naive recurrent": _fla,
        "rwkv_ops": _rwkv,
    },
    "RWKV-7": RWKV7_STEPS,
}
"""For each rule, its implementations of a step ``step(*inputs, state) -> (o, new state)``."""

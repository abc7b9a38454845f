"""The compiled CPU kernels of myfla-native compared with plain PyTorch, onnxruntime and transformers."""

from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch

from benchmarks import cases_native_layers
from benchmarks.cases_decode import HEADS, SIZE
from benchmarks.cases_ops import QUICK, SHAPES
from benchmarks.inputs import INPUTS, WORKS, kda_inputs
from benchmarks.measure import Side, TooSlow, Work, copy_side
from benchmarks.native_sides import NATIVE, add_goal, need_native, rows
from benchmarks.peers import OURS, TRANSFORMERS
from benchmarks.peers_onnx import ONNXRUNTIME
from benchmarks.registry import load_op
from benchmarks.rows import Options, Row

RULES = ("gated delta rule", "RWKV-7", "KDA")
PEERS = {"gated delta rule": (ONNXRUNTIME, TRANSFORMERS)}
GOALS: Dict[Tuple[str, str], Tuple[float, ...]] = {
    ("gated delta rule", "forward"): (4.3, 2.6, 1.6, 1.5),
    ("gated delta rule", "forward + backward"): (4.0, 3.0, 1.9, 1.8),
    ("RWKV-7", "forward"): (3.0, 3.0, 3.0),
    ("RWKV-7", "forward + backward"): (3.0, 3.0, 3.0),
    ("KDA", "forward"): (3.0, 3.0, 3.0),
    ("KDA", "forward + backward"): (3.0, 3.0, 3.0),
}
THREADS_GOAL = 1.8
STEPS = ((1, 4, 32, 32), (1, HEADS, SIZE, SIZE), (8, HEADS, SIZE, SIZE))
LONGEST_PEER_BACKWARD = 2048
"""Above this length transformers' training takes too long: with 16 heads and 4096 tokens a run takes half a minute."""


def run(options: Options) -> Iterator[List[Row]]:
    """Rules, decoding steps, layers and models; then rules on two threads. Yields the lines of each case."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        for op in RULES:
            for index, shape in enumerate(_shapes(op, options)):
                for work in WORKS:
                    yield _rule(op, PEERS.get(op, ()), shape, work, threads, options, index)
        for shape in ((1, 2, 16, 16),) if options.quick else STEPS:
            yield _step(shape, threads, options)
        yield from cases_native_layers.run(options, threads)
    for op in RULES[:2]:
        for shape in _shapes(op, options)[0 if options.quick else 1 :]:
            for work in WORKS:
                yield _two_threads(op, shape, work, options)


def _shapes(op: str, options: Options) -> Sequence[Any]:
    return (QUICK if options.quick else SHAPES)["RWKV-7" if op == "KDA" else op]


def _rule(
    op: str, peers: Tuple[str, ...], shape: Any, work: str, threads: int, options: Options, index: int
) -> List[Row]:
    names = (OURS, NATIVE, *peers)
    sides = [Side(name, lambda name=name: _rule_work(op, name, shape, work)) for name in names]
    lines = rows(sides, options, threads, tokens=shape[0] * shape[1], op=op, work=work, shape=_name(shape))
    add_goal(lines, None if options.quick else GOALS[op, work][index])
    return lines


def _two_threads(op: str, shape: Any, work: str, options: Options) -> List[Row]:
    """The same call on one thread and on two, in wall time."""

    def on(threads: int) -> Work:
        call = _rule_work(op, NATIVE, shape, work)

        def run() -> Any:
            torch.set_num_threads(threads)
            try:
                return call()
            finally:
                torch.set_num_threads(1)

        return run

    one = f"{NATIVE}, 1 thread"
    sides = [Side(one, lambda: on(1)), Side(NATIVE, lambda: on(2))]
    lines = rows(sides, options, 2, tokens=shape[0] * shape[1], op=f"{op} on threads", work=work, shape=_name(shape))
    add_goal(lines, None if options.quick else THREADS_GOAL, one, "one thread")
    return lines


def _name(shape: Any) -> str:
    return " x ".join(str(size) for size in shape)


def _rule_work(op: str, name: str, shape: Any, work: str) -> Work:
    if name == TRANSFORMERS and work != "forward" and shape[1] > LONGEST_PEER_BACKWARD:
        raise TooSlow(f"{work}, T > {LONGEST_PEER_BACKWARD}")
    if op == "KDA":
        return WORKS[work](_kda(name), kda_inputs(*shape, torch.float32, "cpu"))
    call = _native_rule(op) if name == NATIVE else load_op(op, name)
    return WORKS[work](call, INPUTS[op](*shape, torch.float32, "cpu"))


def _kda(name: str) -> Callable[..., Any]:
    from myfla.ops.kda import chunk_kda

    if name == NATIVE:
        need_native()
    backend = "torch" if name == OURS else "native"
    return lambda q, k, v, g, beta: chunk_kda(
        q, k, v, g, beta, use_qk_l2norm_in_kernel=True, backend=backend
    )[0]  # fmt: skip


def _native_rule(op: str) -> Callable[..., Any]:
    need_native()
    if op == "RWKV-7":
        from myfla.ops.rwkv7 import chunk_rwkv7

        return lambda r, w, k, v, a, b: chunk_rwkv7(r, w, k, v, a, b, scale=1.0, backend="native")[0]
    from myfla.ops.gated_delta_rule import chunk_gated_delta_rule

    return lambda q, k, v, g, beta: chunk_gated_delta_rule(
        q, k, v, g, beta, use_qk_l2norm_in_kernel=True, backend="native"
    )[0]


def _step(shape: Any, threads: int, options: Options) -> List[Row]:
    batch, heads, size, _ = shape
    inputs = INPUTS["gated delta rule"](batch, 1, heads, size, torch.float32, "cpu")
    state = torch.randn(batch, heads, size, size)
    sides = [Side(name, lambda name=name: _step_work(name, inputs, state.clone())) for name in (OURS, NATIVE)]
    copy, _ = copy_side("cpu", state.numel())
    return rows([*sides, copy], options, threads, tokens=batch, op="gated delta rule", work="step in place",
                shape=_name(shape))  # fmt: skip


def _step_work(name: str, inputs: Any, state: torch.Tensor) -> Work:
    from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as op

    backend = "torch" if name == OURS else "native"
    if name == NATIVE:
        need_native()
    q, k, v, g, beta = inputs

    def work() -> None:
        with torch.no_grad():
            op(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, inplace_final_state=True,
               use_qk_l2norm_in_kernel=True, backend=backend)  # fmt: skip

    return work

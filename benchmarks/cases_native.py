"""The compiled CPU kernels of myfla-native beside plain PyTorch, onnxruntime, transformers: rules, steps, layers."""

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

from benchmarks.cases_decode import HEADS, SIZE
from benchmarks.cases_ops import QUICK, SHAPES
from benchmarks.inputs import INPUTS, WORKS, largest_error
from benchmarks.measure import Missing, Side, TooSlow, Work, copy_side, time_in_turn
from benchmarks.peers import OURS, TRANSFORMERS
from benchmarks.peers_onnx import ONNXRUNTIME
from benchmarks.registry import load_op
from benchmarks.rows import Options, Row, rows_of

NATIVE = "myfla native"
PEERS = {"gated delta rule": (ONNXRUNTIME, TRANSFORMERS), "RWKV-7": ()}
GOALS: Dict[Tuple[str, str], Tuple[float, ...]] = {
    ("gated delta rule", "forward"): (4.3, 2.6, 1.6, 1.5),
    ("gated delta rule", "forward + backward"): (4.0, 3.0, 1.9, 1.8),
    ("RWKV-7", "forward"): (3.0, 3.0, 3.0),
    ("RWKV-7", "forward + backward"): (3.0, 3.0, 3.0),
}
STEPS = ((1, 4, 32, 32), (1, HEADS, SIZE, SIZE), (8, HEADS, SIZE, SIZE))
LONGEST_PEER_BACKWARD = 2048
"""transformers' training of 16 heads over 4096 tokens takes half a minute a run."""


def run(options: Options) -> Iterator[List[Row]]:
    """Rules, then decoding steps, then layers that decode and train; yields the lines of each case."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        for op, peers in PEERS.items():
            for index, shape in enumerate((QUICK if options.quick else SHAPES)[op]):
                for work in WORKS:
                    yield _rule(op, peers, shape, work, threads, options, index)
        for shape in ((1, 2, 16, 16),) if options.quick else STEPS:
            yield _step(shape, threads, options)
        for kind in LAYERS:
            yield _decode(kind, 32 if options.quick else 256, threads, options)


def _rule(
    op: str, peers: Tuple[str, ...], shape: Any, work: str, threads: int, options: Options, index: int
) -> List[Row]:
    names = (OURS, NATIVE, *peers)
    sides = [Side(name, lambda name=name: _rule_work(op, name, shape, work)) for name in names]
    rows = _rows(sides, options, threads, tokens=shape[0] * shape[1], op=op, work=work,
                 shape=" x ".join(str(size) for size in shape))  # fmt: skip
    _add_goal(rows, None if options.quick else GOALS[op, work][index])
    return rows


def _rule_work(op: str, name: str, shape: Any, work: str) -> Work:
    if name == TRANSFORMERS and work != "forward" and shape[1] > LONGEST_PEER_BACKWARD:
        raise TooSlow(f"{work}, T > {LONGEST_PEER_BACKWARD}")
    call = _native_rule(op) if name == NATIVE else load_op(op, name)
    return WORKS[work](call, INPUTS[op](*shape, torch.float32, "cpu"))


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
    return _rows([*sides, copy], options, threads, tokens=batch, op="gated delta rule", work="step in place",
                 shape=" x ".join(str(part) for part in shape))  # fmt: skip


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


def _gated_deltanet(width: int) -> torch.nn.Module:
    from myfla.layers import GatedDeltaNet

    return GatedDeltaNet(hidden_size=width, head_dim=width // 8, num_heads=6, layer_idx=0)


def _rwkv7(width: int) -> torch.nn.Module:
    from myfla.layers import RWKV7Attention

    return RWKV7Attention(hidden_size=width, head_dim=width // 4, layer_idx=0, num_hidden_layers=1)


LAYERS = {"GatedDeltaNet layer": _gated_deltanet, "RWKV-7 layer": _rwkv7}


def _decode(kind: str, width: int, threads: int, options: Options) -> List[Row]:
    sides = [Side(name, lambda name=name: _decode_work(name, LAYERS[kind], width)) for name in (OURS, NATIVE)]
    return _rows(sides, options, threads, tokens=1, op=kind, work="decoding, one row", shape=f"width {width}")


def _decode_work(name: str, make: Callable[[int], torch.nn.Module], width: int) -> Work:
    from myfla.models.utils import Cache

    if name == NATIVE:
        need_native()
    torch.manual_seed(0)
    layer, x, cache = make(width).eval(), torch.randn(1, 1, width), Cache()
    with torch.no_grad():
        layer(torch.randn(1, 8, width), past_key_values=cache, use_cache=True)
    cache = cache.in_place()

    def work() -> None:
        with torch.no_grad():
            layer(x, past_key_values=cache, use_cache=True)

    def plain_work() -> None:
        with plain_only():
            work()

    return work if name == NATIVE else plain_work


def _rows(sides: List[Side], options: Options, threads: int, **case: Any) -> List[Row]:
    timings = time_in_turn(sides, options.rounds, options.patience, "cpu", largest_error)
    return rows_of(timings, [side.name for side in sides], threads == 1, section="native", dtype="float32",
                   threads=threads, **case)  # fmt: skip


def _add_goal(rows: List[Row], goal: Any) -> None:
    """What the compiled kernels reach, as a multiple of the plain form's speed."""
    row = rows[1]
    if row.ratio and goal:
        row.goal = f"{1 / row.ratio:.2f}x the speed of the plain form (goal: {goal:g}x)"


def need_native() -> None:
    """Raise `Missing` where the compiled kernels are not installed."""
    from myfla.utils.native import missing_native

    reason = missing_native()
    if reason is not None:
        raise Missing(reason)


@contextlib.contextmanager
def plain_only() -> Iterator[None]:
    """Nobody finds the compiled kernels, as where they are not installed: a layer's parts ask for them too."""
    from myfla.utils import native as door

    found = door._installed
    setattr(door, "_installed", lambda: (None, "left out"))
    try:
        yield
    finally:
        setattr(door, "_installed", found)

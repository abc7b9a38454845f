"""The time for one token of many short packed sequences, compared with a dense batch of as many tokens."""

from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

from benchmarks.cases_varlen import bounds_of, lengths_of
from benchmarks.inputs import INPUTS
from benchmarks.measure import Side, Work, time_in_turn
from benchmarks.rows import Options, Row, rows_of

GOAL, WIDTH = 1.5, 128


def run(options: Options) -> Iterator[List[Row]]:
    """Forward and backward of both ops, layers and encoders; yields the lines of each."""
    torch.set_num_threads(1)
    mixes = ([4] * 6, lengths_of(4, 24)) if options.quick else ([16] * 256, lengths_of(16, 1000))
    for name, (make, works) in _subjects(16 if options.quick else 64, 32 if options.quick else WIDTH).items():
        for work in works:
            for lengths in mixes:
                yield _case(name, make, work, lengths, options)


def _subjects(size: int, width: int) -> Dict[str, Tuple[Callable[..., Callable[[], Work]], Tuple[str, ...]]]:
    chunk, token = ("forward + backward",), ("forward",)
    made: Dict[str, Any] = {}
    for op in INPUTS:
        made[op] = (partial(_op, op, size, False), chunk)
        made[f"{op}, recurrent"] = (partial(_op, op, size, True), token)
    for name in ("GatedDeltaNet", "RWKV7Attention"):
        made[f"{name} layer"] = (partial(_module, partial(_layer, name, width), width), chunk)
    for name in ("gated_deltanet", "rwkv7"):
        made[f"{name} encoder"] = (partial(_module, partial(_encoder, name), 12), chunk)
    return made


def _case(op: str, maker: Any, work: str, lengths: List[int], options: Options) -> List[Row]:
    total, count = sum(lengths), len(lengths)
    dense, cu = (count, -(-total // count)), bounds_of(lengths)
    sides = [Side("dense", maker(dense, None)), Side("packed", maker((1, total), cu))]
    timings = time_in_turn(sides, options.rounds, options.patience, "cpu")
    spread = f"of {lengths[0]}" if len(set(lengths)) == 1 else f"of 1 to {max(lengths)}"
    rows = []
    for side, tokens in (("dense", dense[0] * dense[1]), ("packed", total)):
        rows += rows_of(
            timings, [side], True, tokens=tokens, section="packing", op=op, shape=f"{count} sequences {spread}",
            work=work, dtype="float32", threads=1,
        )  # fmt: skip
    for row in rows:
        if row.tokens_per_second and rows[0].tokens_per_second:
            row.ratio = rows[0].tokens_per_second / row.tokens_per_second
    if rows[1].ratio and not options.quick:
        rows[1].goal = f"{rows[1].ratio:.2f} of the dense time for a token (goal: at most {GOAL:g})"
    return rows


def _op(op: str, size: int, recurrent: bool, shape: Tuple[int, int], cu: Any) -> Callable[[], Work]:
    def make() -> Work:
        from myfla.ops import gated_delta_rule, rwkv7

        if op == "RWKV-7":
            function = rwkv7.fused_recurrent_rwkv7 if recurrent else rwkv7.chunk_rwkv7
        else:
            own = gated_delta_rule
            function = own.fused_recurrent_gated_delta_rule if recurrent else own.chunk_gated_delta_rule
        leaves = [x.requires_grad_(not recurrent) for x in INPUTS[op](*shape, 4, size, torch.float32, "cpu")]
        gradient = torch.randn_like(leaves[2])

        def work() -> None:
            o = function(*leaves, cu_seqlens=cu)[0] if op == "RWKV-7" else _gated(function, leaves, cu)
            if not recurrent:
                torch.autograd.grad(o, leaves, gradient)

        return work

    return make


def _gated(function: Callable[..., Any], leaves: List[torch.Tensor], cu: Any) -> torch.Tensor:
    q, k, v, g, beta = leaves
    return function(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True, cu_seqlens=cu)[0]


def _module(build: Callable[[], Callable[..., torch.Tensor]], width: int, shape: Tuple[int, int],
            cu: Any) -> Callable[[], Work]:
    def make() -> Work:
        torch.manual_seed(0)
        module, call = build()
        x = torch.randn(*shape, width, requires_grad=True)

        def work() -> None:
            module.zero_grad(set_to_none=True)
            x.grad = None
            call(x, cu).sum().backward()

        return work

    return make


def _layer(name: str, width: int) -> Tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    from myfla import layers

    more = {"layer_idx": 0, "num_hidden_layers": 1} if name == "RWKV7Attention" else {"num_heads": width // 32}
    layer = getattr(layers, name)(hidden_size=width, head_dim=32, **more)
    return layer, lambda x, cu: layer(x, cu_seqlens=cu)[0]


def _encoder(name: str) -> Tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    from encoders import build_encoder

    encoder = build_encoder({"name": name, "input_size": 12})
    return encoder, lambda x, cu: encoder(x, cu_seqlens=cu).hidden

"""The time for one real token of packed and padded sequences, compared with a dense batch of about as many tokens."""

from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

from benchmarks.cases_layer import ours as make_layer
from benchmarks.inputs import INPUTS
from benchmarks.measure import Side, Work, time_in_turn
from benchmarks.rows import Options, Row, rows_of

ROWS, LONGEST, GOAL = 16, 512, 1.2


def run(options: Options) -> Iterator[List[Row]]:
    """Forward and backward of both ops and of the layer; yields the lines of each."""
    torch.set_num_threads(1)
    rows, longest, width, size = (4, 24, 32, 16) if options.quick else (ROWS, LONGEST, 256, 64)
    lengths = lengths_of(rows, longest)
    total, dense = sum(lengths), (rows, -(-sum(lengths) // rows))
    packed = {"cu_seqlens": bounds_of(lengths)}
    for op in INPUTS:
        sides = {"dense": (_op(op, dense, size, {}), dense), "packed": (_op(op, (1, total), size, packed), total)}
        yield _case(op, f"4 x {size}", sides, lengths, options)
    sides = {
        "dense": (_layer(width, dense, {}), dense),
        "packed": (_layer(width, (1, total), packed), total),
        "padded left": (_layer(width, (rows, longest), {"attention_mask": mask_of(lengths, left=True)}), total),
        "padded right": (_layer(width, (rows, longest), {"attention_mask": mask_of(lengths, left=False)}), total),
    }
    yield _case("GatedDeltaNet layer", f"width {width}", sides, lengths, options)


def lengths_of(rows: int, longest: int) -> List[int]:
    """Random lengths from 1 to ``longest``, the first of them the longest."""
    draw = torch.Generator().manual_seed(0)
    return [longest, *torch.randint(1, longest + 1, (rows - 1,), generator=draw).tolist()]


def bounds_of(lengths: List[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def mask_of(lengths: List[int], left: bool) -> torch.Tensor:
    """``[B, T]`` of 0 and 1."""
    position = torch.arange(max(lengths))
    mask = (position < torch.tensor(lengths)[:, None]).long()
    return mask.flip(1) if left else mask


def _case(op: str, size: str, sides: Dict[str, Any], lengths: List[int], options: Options) -> List[Row]:
    timed = [Side(name, make) for name, (make, _) in sides.items()]
    timings = time_in_turn(timed, options.rounds, options.patience, "cpu")
    total, shape = sum(lengths), f"{len(lengths)} sequences of 1 to {max(lengths)}, {size}"
    rows = []
    for name, (_, tokens) in sides.items():
        count = tokens if isinstance(tokens, int) else tokens[0] * tokens[1]
        rows += rows_of(
            timings, [name], True, tokens=count, section="varlen", op=op, shape=shape, work="forward + backward",
            dtype="float32", threads=1,
        )  # fmt: skip
    for row in rows:
        if row.tokens_per_second and rows[0].tokens_per_second:
            row.ratio = rows[0].tokens_per_second / row.tokens_per_second
            if row is not rows[0] and not options.quick:
                row.goal = f"{row.ratio:.2f} of the dense time for a token (goal: at most {GOAL:g})"
    rows[0].note = f"{total} real tokens"
    return rows


def _op(op: str, shape: Tuple[int, int], size: int, more: Dict[str, Any]) -> Callable[[], Work]:
    def make() -> Work:
        from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
        from myfla.ops.rwkv7.chunk import chunk_rwkv7

        function = chunk_rwkv7 if op == "RWKV-7" else partial(chunk_gated_delta_rule, use_qk_l2norm_in_kernel=True)
        leaves = [x.requires_grad_() for x in INPUTS[op](*shape, 4, size, torch.float32, "cpu")]
        gradient = torch.randn_like(leaves[2])

        def work() -> None:
            torch.autograd.grad(function(*leaves, **more)[0], leaves, gradient)

        return work

    return make


def _layer(width: int, shape: Tuple[int, int], more: Dict[str, Any]) -> Callable[[], Work]:
    def make() -> Work:
        torch.manual_seed(0)
        layer, x = make_layer(width), torch.randn(*shape, width, requires_grad=True)
        gradient = torch.randn(*shape, width)

        def work() -> None:
            layer.zero_grad(set_to_none=True)
            x.grad = None
            layer(x, **more)[0].backward(gradient)

        return work

    return make

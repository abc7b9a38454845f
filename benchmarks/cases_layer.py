"""A training step of a complete layer compared with alternatives: GRU, LSTM, transformers' layer."""

from typing import Callable, Iterator, List, Tuple

import torch
from torch import nn

from benchmarks.floors import layer_flops
from benchmarks.measure import GEMM_SIDE, Side, Work, median, product_side, time_in_turn
from benchmarks.peers import OURS, qwen3_next
from benchmarks.rows import Options, Row, rows_of

SHAPES = ((8, 128, 128), (2, 512, 256), (1, 2048, 512))
GRU, LSTM, PEER = "nn.GRU", "nn.LSTM", "transformers layer"
HEADS = 6
"""The official default: 6 heads of width / 8, values twice as wide as keys."""


def run(options: Options) -> Iterator[List[Row]]:
    """Every shape; yields the lines of each."""
    for threads in options.threads:
        torch.set_num_threads(threads)
        for shape in ((2, 20, 32),) if options.quick else SHAPES:
            yield _case(shape, threads, options)


def _case(shape: Tuple[int, int, int], threads: int, options: Options) -> List[Row]:
    batch, tokens, width = shape
    makers = {OURS: ours, PEER: transformers_layer, GRU: gru, LSTM: lstm}
    sides = [Side(name, training_step(maker, shape)) for name, maker in makers.items()]
    product, flops = product_side("cpu", torch.float32)
    timings = time_in_turn([*sides, product], options.rounds, options.patience, "cpu")
    process = threads == 1
    rate = flops / median(timings[GEMM_SIDE].samples(process))
    least = layer_flops(batch * tokens, width, HEADS, width // 8, width // 4)
    rows = rows_of(
        timings, list(makers), process, tokens=batch * tokens, section="layer", op="GatedDeltaNet layer",
        shape=f"{batch} x {tokens}, width {width}", work="training step", dtype="float32", threads=threads,
        note=f"floor of the GatedDeltaNet layer: {least / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s",
    )  # fmt: skip
    if rows[0].seconds:
        rows[0].floor, rows[0].share = least / rate, least / rate / rows[0].seconds
        goals = {PEER: 1.6, GRU: 1.0, **({LSTM: 1.0} if tokens >= 2048 else {})}
        own = [row for row in rows if row.side in goals and row.ratio]
        if not options.quick:
            rows[0].goal = ", ".join(f"{row.ratio:.2f}x {row.side} (goal: {goals[row.side]:g}x)" for row in own)
    return rows


def ours(width: int) -> nn.Module:
    from myfla.layers import GatedDeltaNet

    return GatedDeltaNet(hidden_size=width, head_dim=width // 8, num_heads=HEADS)


def transformers_layer(width: int) -> nn.Module:
    module = qwen3_next()
    config = module.Qwen3NextConfig(
        hidden_size=width, num_hidden_layers=4, linear_num_key_heads=HEADS, linear_num_value_heads=HEADS,
        linear_key_head_dim=width // 8, linear_value_head_dim=width // 4,
    )  # fmt: skip
    return module.Qwen3NextGatedDeltaNet(config, 0)


def gru(width: int) -> nn.Module:
    return nn.GRU(width, width, batch_first=True)


def lstm(width: int) -> nn.Module:
    return nn.LSTM(width, width, batch_first=True)


def training_step(maker: Callable[[int], nn.Module], shape: Tuple[int, int, int]) -> Callable[[], Work]:
    """Forward and backward of a layer of ``shape``: rows, tokens, width."""

    def make() -> Work:
        torch.manual_seed(0)
        layer, x = maker(shape[-1]), torch.randn(*shape, requires_grad=True)
        gradient = torch.randn(*shape)

        def work() -> None:
            layer.zero_grad(set_to_none=True)
            x.grad = None
            y = layer(x)
            (y[0] if isinstance(y, tuple) else y).backward(gradient)

        return work

    return make

"""Whole layers and models with the compiled CPU kernels and without: decoding, training steps, Qwen3-Next."""

import functools
from typing import Any, Callable, Iterator, List, Tuple

import torch

from benchmarks import cases_hf
from benchmarks.cases_layer import LSTM, SHAPES, lstm, ours, training_step
from benchmarks.measure import Missing, Side, Work
from benchmarks.native_sides import add_goal, both, rows
from benchmarks.rows import Options, Row

LSTM_GOALS = (1.0, 1.5, 2.5)
MODEL_GOALS = {"prefill": 2.0, "decode": 2.0, "train": 3.0}


def run(options: Options, threads: int) -> Iterator[List[Row]]:
    """Decoding steps, training steps compared with nn.LSTM, and a model of transformers."""
    for kind in LAYERS:
        yield _decode(kind, 32 if options.quick else 256, threads, options)
    for index, shape in enumerate(((2, 20, 32),) if options.quick else SHAPES):
        yield _train(shape, threads, options, index)
    yield from _model(64 if options.quick else cases_hf.TOKENS, threads, options)


def _gated_deltanet(width: int) -> torch.nn.Module:
    from myfla.layers import GatedDeltaNet

    return GatedDeltaNet(hidden_size=width, head_dim=width // 8, num_heads=6, layer_idx=0)


def _rwkv7(width: int) -> torch.nn.Module:
    from myfla.layers import RWKV7Attention

    return RWKV7Attention(hidden_size=width, head_dim=width // 4, layer_idx=0, num_hidden_layers=1)


LAYERS = {"GatedDeltaNet layer": _gated_deltanet, "RWKV-7 layer": _rwkv7}


def _decode(kind: str, width: int, threads: int, options: Options) -> List[Row]:
    sides = both(functools.partial(_decode_work, LAYERS[kind], width))
    return rows(sides, options, threads, tokens=1, op=kind, work="decoding, one row", shape=f"width {width}")


def _decode_work(make: Callable[[int], torch.nn.Module], width: int) -> Work:
    from myfla.models.utils import Cache

    torch.manual_seed(0)
    layer, x, cache = make(width).eval(), torch.randn(1, 1, width), Cache()
    with torch.no_grad():
        layer(torch.randn(1, 8, width), past_key_values=cache, use_cache=True)
    cache = cache.in_place()

    def work() -> None:
        with torch.no_grad():
            layer(x, past_key_values=cache, use_cache=True)

    return work


def _train(shape: Tuple[int, int, int], threads: int, options: Options, index: int) -> List[Row]:
    batch, tokens, width = shape
    sides = [*both(training_step(ours, shape)), Side(LSTM, training_step(lstm, shape))]
    lines = rows(sides, options, threads, tokens=batch * tokens, op="GatedDeltaNet layer", work="training step",
                 shape=f"{batch} x {tokens}, width {width}")  # fmt: skip
    add_goal(lines, None if options.quick else LSTM_GOALS[index], LSTM, LSTM)
    return lines


def _model(tokens: int, threads: int, options: Options) -> Iterator[List[Row]]:
    models = cases_hf.load_models()
    if isinstance(models, Missing):
        yield [cases_hf.missing("native", cases_hf.QWEN, tokens, models)]
        return
    works = cases_hf.whole(models, models.build(torch.float32), tokens)
    for name, call in works.items():
        sides = [*both(cases_hf.with_myfla(call, models.FAMILY)), _theirs(call)]
        count = cases_hf.DECODED if name == "decode" else tokens
        lines = rows(sides, options, threads, tokens=count, op=cases_hf.QWEN, work=name, shape=f"1 x {count}")
        add_goal(lines, None if options.quick else MODEL_GOALS[name], cases_hf.THEIRS, cases_hf.THEIRS)
        yield lines


def _theirs(call: Callable[[], Any]) -> Side:
    return Side(cases_hf.THEIRS, lambda: cases_hf.tuple_of(call))

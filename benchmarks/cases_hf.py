"""A Qwen3-Next-like model of transformers on its own functions and on ours: the model and work of `hf_models`."""

import functools
from typing import Any, Callable, Iterator, List, Tuple

import torch

from benchmarks.inputs import largest_error
from benchmarks.measure import Missing, Side, Work, time_in_turn
from benchmarks.peers import OURS, optional, qwen3_next
from benchmarks.rows import Options, Row, rows_of

TOKENS, DECODED = 2048, 32
THEIRS = "transformers"


def run(options: Options) -> Iterator[List[Row]]:
    """Prefill, decoding and a training step of the model, then the replaced functions alone."""
    tokens = 64 if options.quick else TOKENS
    try:
        qwen3_next()  # before anything else imports transformers: with fla hidden
        models = optional("benchmarks.hf_models")
    except Missing as error:
        yield [_row("prefill", tokens, THEIRS, 1, status="missing", reason=str(error))]
        return
    for threads in options.threads:
        torch.set_num_threads(threads)
        yield from _cases(models, tokens, threads, options)


def _cases(models: Any, tokens: int, threads: int, options: Options) -> Iterator[List[Row]]:
    model = models.build(torch.float32)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens))
    whole = (models.prefill, models.decode, models.train)
    works = {work.__name__: functools.partial(work, model, ids) for work in whole}
    for name, work in {**works, **models.functions_alone(model, tokens)}.items():
        sides = [Side(OURS, _with_myfla(work, models.FAMILY)), Side(THEIRS, lambda work=work: _tuple_of(work))]
        timings = time_in_turn(sides, options.rounds, 3 * options.patience, "cpu", largest_error)
        count = DECODED if name == "decode" else tokens
        blank = _row(name, count, "", threads)
        case = {field: getattr(blank, field) for field in ("section", "op", "shape", "work", "dtype", "threads")}
        yield rows_of(timings, [OURS, THEIRS], threads == 1, tokens=count, **case)


def _with_myfla(work: Work, family: str) -> Callable[[], Work]:
    def make() -> Work:
        from myfla.integrations.transformers import use_myfla

        def replaced() -> Any:
            with use_myfla(families=[family]):
                return _tuple_of(work)()

        return replaced

    return make


def _tuple_of(work: Work) -> Callable[[], Tuple[torch.Tensor, ...]]:
    return lambda: (work().detach(),)


def _row(work: str, tokens: int, side: str, threads: int, **more: Any) -> Row:
    return Row("hf", "Qwen3-Next-like model", f"1 x {tokens}", work, "float32", threads, side, **more)

"""Models of transformers with its functions and with ours: one with the gated delta rule, and those with Mamba-2."""

import functools
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch

from benchmarks import hf_mamba
from benchmarks.inputs import largest_error
from benchmarks.measure import Missing, Side, Work, time_in_turn
from benchmarks.peers import OURS, optional, qwen3_next
from benchmarks.rows import Options, Row, rows_of

TOKENS, DECODED = 2048, 32
THEIRS = "transformers"
QWEN = "Qwen3-Next-like model"
MAMBA = "models of transformers"
Works = Dict[str, Callable[[], torch.Tensor]]


def run(options: Options) -> Iterator[List[Row]]:
    """Prefill, decoding and a training step of Qwen3-Next, then the replaced functions alone."""
    tokens = 64 if options.quick else TOKENS
    models = load_models()
    if isinstance(models, Missing):
        yield [missing("hf", QWEN, tokens, models)]
        return
    for threads in options.threads:
        torch.set_num_threads(threads)
        model = models.build(torch.float32)
        works = {**whole(models, model, tokens), **models.functions_alone(model, tokens)}
        yield from _cases("hf", QWEN, "", models.FAMILY, works, tokens, options, threads)


def run_mamba(options: Options) -> Iterator[List[Row]]:
    """The same for every family with Mamba-2, and for one with short convolutions only; ``--only`` selects families."""
    tokens = 64 if options.quick else TOKENS
    models = load_models()
    if isinstance(models, Missing):
        yield [missing("hf_mamba", MAMBA, tokens, models)]
        return
    for threads in options.threads:
        torch.set_num_threads(threads)
        for family in [name for name in hf_mamba.MODELS if name in options.only] or hf_mamba.MODELS:
            works = whole(models, hf_mamba.build(family), tokens)
            yield from _cases("hf_mamba", MAMBA, f"{family}, ", family, works, tokens, options, threads)


def load_models() -> Any:
    """The works of a model; raises `Missing` with the reason why transformers cannot be used."""
    try:
        qwen3_next()  # before anything else imports transformers: with fla hidden
        return optional("benchmarks.hf_models")
    except Missing as error:
        return error


def whole(models: Any, model: torch.nn.Module, tokens: int) -> Works:
    """The works of a whole model."""
    ids = torch.randint(1, model.config.vocab_size, (1, tokens))
    works = (models.prefill, models.decode, models.train)
    return {work.__name__: functools.partial(work, model, ids) for work in works}


def _cases(
    section: str, op: str, name: str, family: str, works: Works, tokens: int, options: Options, threads: int
) -> Iterator[List[Row]]:
    for work, call in works.items():
        sides = [Side(OURS, with_myfla(call, family)), Side(THEIRS, lambda call=call: tuple_of(call))]
        timings = time_in_turn(sides, options.rounds, 3 * options.patience, "cpu", largest_error)
        count = DECODED if work == "decode" else tokens
        case = dict(section=section, op=op, shape=f"{name}1 x {count}", work=work, dtype="float32", threads=threads)
        yield rows_of(timings, [OURS, THEIRS], threads == 1, tokens=count, **case)


def with_myfla(work: Work, family: str) -> Callable[[], Work]:
    def make() -> Work:
        from myfla.integrations.transformers import use_myfla

        def replaced() -> Any:
            with use_myfla(families=[family]):
                return tuple_of(work)()

        return replaced

    return make


def tuple_of(work: Work) -> Callable[[], Tuple[torch.Tensor, ...]]:
    return lambda: (work().detach(),)


def missing(section: str, op: str, tokens: int, error: Missing) -> Row:
    return Row(section, op, f"1 x {tokens}", "prefill", "float32", 1, THEIRS, status="missing", reason=str(error))

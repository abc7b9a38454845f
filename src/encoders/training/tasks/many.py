"""The predictions of a trained task for many sequences, in parts that fit into memory."""

from functools import partial
from typing import Iterator, NamedTuple

import torch
from torch import Tensor

from encoders.encoding import encode_many
from encoders.pipeline import InputPipeline
from encoders.stack import Encoder, EncoderOutput
from encoders.training.data.prepared import Prepared
from encoders.training.encode import check_finite_rows
from encoders.training.tasks.answers import Answers, answer
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import Task

__all__ = ["BATCH_TOKENS", "Answered", "answer_many"]

BATCH_TOKENS = 16384
"""Most tokens in a call of the encoder, unless the caller says otherwise."""
PART = 1024
"""Largest number of sequences in a part."""
NUMBERS = 1 << 22
"""Largest number of values in a part: with many classes it has fewer sequences, but at least one."""


class Answered(NamedTuple):
    """Answers for consecutive sequences.

    Attributes:
        span: which.
        lengths: ``[n]`` int64, the steps of each.
        answers: ``[n, ...]``, or one for each step ``[total, ...]``; on the CPU.
    """

    span: range
    lengths: Tensor
    answers: Answers


def answer_many(encoder: Encoder, task: Task, pipeline: InputPipeline, sequences: Prepared,
                batch_tokens: int = BATCH_TOKENS) -> Iterator[Answered]:
    """The task's answers, part by part.

    Args:
        encoder: that reads prepared data; its mode (training or evaluation) is restored.
        task: its head, on the same device.
        pipeline: of the same run.
        sequences: prepared by it.
        batch_tokens: largest number of tokens in a call of the encoder, padding included; a longer sequence is computed
            alone.

    Raises:
        RunError: what the encoder says is not finite.
    """
    per_step = task.spec.per_step
    for span in _spans(sequences, task.spec):
        lengths = [sequences.lengths[i] for i in span]
        rows, steps = encode_many(encoder, lengths, partial(_input, sequences, span), batch_tokens, per_step)
        check_finite_rows(rows, span)
        joined = (torch.cat if per_step else torch.stack)(rows).to(task.head.weight.device)
        with torch.no_grad():
            found = answer(task, pipeline, task(EncoderOutput(joined, joined, None, steps)))
        on_cpu = {name: value.cpu() for name, value in found._asdict().items() if value is not None}
        yield Answered(span, steps, found._replace(**on_cpu))


def _input(sequences: Prepared, span: range, place: int) -> Tensor:
    """The input of the sequence at a place of a span."""
    return sequences[span[place]].x


def _spans(sequences: Prepared, spec: TaskSpec) -> Iterator[range]:
    """The sequences in parts as large as `PART` and `NUMBERS` allow."""
    first = held = 0
    for place, length in enumerate(sequences.lengths):
        size = spec.outputs * (length if spec.per_step else 1)
        if place > first and (place - first >= PART or held + size > NUMBERS):
            yield range(first, place)
            first, held = place, 0
        held += size
    if first < len(sequences):
        yield range(first, len(sequences))

"""Embeddings of sequences, in their original order; sequences of similar length are computed together."""

from typing import List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from encoders.encoding import encode_many
from encoders.errors import RunError
from encoders.stack import Encoder
from encoders.training.data.prepared import Prepared

__all__ = ["Encoded", "check_finite_rows", "encode"]


class Encoded(NamedTuple):
    """Embeddings of some sequences.

    Attributes:
        first: number of the first sequence.
        embeddings: ``[n, D]``, or one for each step, ``[total, D]``; float32 (float64 of a float64 encoder), on the
            CPU.
        lengths: ``[n]`` int64: steps of each sequence, with a stem those that it leaves.
        names: of the sequences, where the data have names.
    """

    first: int
    embeddings: Tensor
    lengths: Tensor
    names: Optional[List[str]] = None


def encode(encoder: Encoder, data: Prepared, span: range, batch_tokens: int, per_step: bool) -> Encoded:
    """Embeddings of the sequences of a span.

    Args:
        encoder: that reads prepared data.
        data: all sequences, as the encoder gets them.
        span: which.
        batch_tokens: largest number of tokens in a call, padding included; a longer sequence is computed alone.
        per_step: the hidden state of each step, in place of the pooled embedding.
    """
    rows, steps = encode_many(encoder, [data.lengths[i] for i in span], lambda place: data[span[place]].x, batch_tokens,
                              per_step)
    check_finite_rows(rows, span)
    joined = (torch.cat if per_step else torch.stack)(rows)
    return Encoded(span.start, joined if joined.dtype == torch.float64 else joined.float(), steps, None)


def check_finite_rows(rows: Sequence[Tensor], span: range) -> None:
    """Check the embeddings of the sequences of a span.

    Raises:
        RunError: a NaN or an infinity; with the number of the sequence.
    """
    for number, row in zip(span, rows):
        if not bool(torch.isfinite(row).all()):
            raise RunError(f"sequence {number + 1}: its embedding must be finite; got NaN or infinity; find "
                           "where it begins with encoders.check_finite, or leave the sequence out")

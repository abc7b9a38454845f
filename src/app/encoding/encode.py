"""Sequences to embeddings, those of like length together, in the order in which they came."""

from typing import Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from app.data.batches import collate
from app.data.prepared import Prepared
from app.tasks.predict import to_device
from encoders.stack import Encoder

__all__ = ["Encoded", "encode"]


class Encoded(NamedTuple):
    """Embeddings of some sequences.

    Attributes:
        first: number of the first sequence.
        embeddings: ``[n, D]``, or one a step, ``[total, D]``; float32 (float64 of a float64 encoder), on the CPU.
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
        encoder: in evaluation mode.
        data: all sequences, as the encoder gets them.
        span: which.
        batch_tokens: most tokens in a call, pads included; a longer sequence is taken by itself.
        per_step: the hidden state of each step, in place of the pooled embedding.
    """
    weight = next(encoder.parameters())
    found: List[Optional[Tensor]] = [None] * len(span)
    lengths = torch.zeros(len(span), dtype=torch.int64)
    with torch.inference_mode():
        for places in _batches([data.lengths[i] for i in span], batch_tokens):
            batch = to_device(collate([data[span[place]] for place in places]), weight)
            out = encoder(batch.x, lengths=batch.lengths)
            lengths[places] = out.lengths.cpu()
            rows = out.hidden if per_step else out.embedding
            for row, place, length in zip(rows, places, out.lengths.tolist()):
                found[place] = (row[:length] if per_step else row).cpu()
    joined = (torch.cat if per_step else torch.stack)(found)
    return Encoded(span.start, joined if joined.dtype == torch.float64 else joined.float(), lengths, None)


def _batches(lengths: Sequence[int], most: int) -> Iterator[List[int]]:
    """Places of sequences that go together, longest first, so that memory runs out at once or never."""
    batch: List[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch

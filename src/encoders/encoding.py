"""Embeddings of many sequences, in their original order; sequences of similar length are computed together."""

from typing import Any, Callable, Iterator, List, Optional, Protocol, Sequence, Tuple, Union

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cfg.encoder import EncoderConfig
from encoders.inputs import input_weight
from encoders.pipeline import InputPipeline
from encoders.raw import read_sequences
from encoders.schema import InputSchema

__all__ = ["Encodes", "batches_of_like_length", "encode_many", "encode_raw"]


class Encodes(Protocol):
    """The interface of an encoder that is used here."""

    config: EncoderConfig
    input: nn.Module
    pipeline: Optional[InputPipeline]
    training: bool

    def __call__(self, x: Any, lengths: Any = None) -> Any:
        """An `encoders.stack.EncoderOutput`."""

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`."""


def encode_raw(encoder: Encodes, x: Any, batch_tokens: int = 16384, per_step: bool = False) -> Union[Tensor, list]:
    """Embeddings of raw data; see `encoders.stack.Encoder.encode`.

    Example:
        >>> from encoders import build_encoder
        >>> encoder = build_encoder({"name": "gated_deltanet", "input_size": 1})
        >>> [len(rows) for rows in encode_raw(encoder, [[0.1, 0.2], [0.3]], per_step=True)]
        [2, 1]
    """
    sequences = read_sequences(encoder.pipeline or _plain(encoder), x)
    rows, _ = encode_many(encoder, [len(sequence) for sequence in sequences], sequences.__getitem__, batch_tokens,
                          per_step)
    if per_step:
        return rows
    return torch.stack(rows) if rows else torch.zeros(0, encoder.config.hidden_size)


def encode_many(encoder: Encodes, lengths: Sequence[int], get: Callable[[int], Tensor], batch_tokens: int,
                per_step: bool = False) -> Tuple[List[Tensor], Tensor]:
    """Embeddings of prepared sequences, without gradients and in evaluation mode.

    Args:
        encoder: its mode (training or evaluation) is restored.
        lengths: lengths of the sequences.
        get: ``get(place)`` returns one, ``[T, ...]``.
        batch_tokens: largest number of tokens in a call, padding included; a longer sequence is computed alone.
        per_step: return the hidden states of each sequence instead of its embedding.

    Returns:
        ``(rows, lengths)``: ``[hidden_size]`` or ``[T_i, hidden_size]`` each, and ``[N]`` int64, the steps of each
        (after a stem); on the CPU.
    """
    weight, training = input_weight(encoder.input), encoder.training
    rows: List[Any] = [None] * len(lengths)
    steps = torch.zeros(len(lengths), dtype=torch.int64)
    encoder.train(False)
    try:
        with torch.no_grad():
            for places in batches_of_like_length(lengths, batch_tokens):
                parts = [get(place) for place in places]
                x = pad_sequence(parts, batch_first=True).to(weight.device)
                if not x.is_floating_point():
                    x = x.long()
                elif encoder.pipeline is None:  # which makes of it what it needs
                    x = x.to(weight.dtype)
                out = encoder(x, lengths=torch.tensor([len(part) for part in parts]))
                steps[places] = out.lengths.cpu()
                for row, place in enumerate(places):
                    length = int(out.lengths[row])
                    rows[place] = (out.hidden[row, :length] if per_step else out.embedding[row]).cpu()
    finally:
        encoder.train(training)
    return rows, steps


def batches_of_like_length(lengths: Sequence[int], most: int) -> Iterator[List[int]]:
    """Batches of places of sequences of similar length, the longest first, so that a lack of memory shows at once.

    Example:
        >>> list(batches_of_like_length([1, 3, 2], 4))
        [[1], [2, 0]]
    """
    batch: List[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _plain(encoder: Encodes) -> InputPipeline:
    """The pipeline for an encoder without one: it does not change the data."""
    config = encoder.config
    if config.vocab_size is not None:
        return InputPipeline.tokens(config.vocab_size)
    width = config.input_size or 0
    return InputPipeline(InputSchema.unnamed(width), mean=(0.0,) * width, std=(1.0,) * width)

"""Feeds sequences to a causal encoder piece by piece, as a stream would."""

from typing import Any, List

import torch
from torch import Tensor

from encoders.batch import make_layout
from encoders.stack import Encoder, EncoderOutput
from encoders.training.data.batches import Batch

__all__ = ["encode_in_pieces"]


def encode_in_pieces(encoder: Encoder, batch: Batch, pieces: int, carry: bool = True) -> EncoderOutput:
    """The encoder's output for a batch, computed piece by piece.

    Args:
        encoder: causal, without a stem.
        batch: padded.
        pieces: steps of each piece.
        carry: continue each piece from the state after the one before. False: start each from zero, so that no output
            depends on earlier pieces.

    Returns:
        `EncoderOutput` without a cache; with ``carry`` equal to that of the whole batch up to rounding.
    """
    cache: Any = None
    found: List[Tensor] = []
    for start in range(0, batch.x.shape[1], pieces):
        x = batch.x[:, start : start + pieces]
        out = encoder(x, lengths=(batch.lengths - start).clamp(0, x.shape[1]), cache=cache, use_cache=carry)
        cache = out.cache
        found.append(out.hidden)
    hidden = torch.cat(found, 1)
    layout = make_layout(hidden, batch.lengths)
    return EncoderOutput(hidden, encoder.pooling(layout.pack(hidden), layout), None, batch.lengths)

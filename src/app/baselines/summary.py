"""A few numbers that summarise a sequence."""

from typing import Callable, List

import torch
from torch import Tensor

__all__ = ["summaries"]

_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def summaries(count: int, get: Callable[[int], Tensor], vocab_size: int = 0) -> Tensor:
    """``[count, F]`` float64: for each channel mean, standard deviation, range, quantiles, first and last value, and
    size of the changes from step to step; and the logarithm of the length. For token ids the share of each, and the
    length.

    Args:
        count: the number of sequences.
        get: ``get(place)`` returns one, ``[T, D]`` without missing values, or ``[T]`` token ids.
        vocab_size: the number of token ids; 0 for features.
    """
    return torch.stack([_tokens(get(i), vocab_size) if vocab_size else _channels(get(i).double())
                        for i in range(count)])


def _channels(x: Tensor) -> Tensor:
    moves = x.diff(dim=0) if len(x) > 1 else torch.zeros_like(x)
    parts: List[Tensor] = [x.mean(0), x.std(0, unbiased=False), x.amin(0), x.amax(0), x[0], x[-1],
                           moves.abs().mean(0), moves.std(0, unbiased=False)]
    ordered = x.sort(0).values
    parts += [ordered[round(share * (len(x) - 1))] for share in _SHARES]
    return torch.cat([*parts, torch.tensor([len(x)], dtype=torch.float64).log()])


def _tokens(ids: Tensor, vocab_size: int) -> Tensor:
    counts = torch.bincount(ids.long(), minlength=vocab_size).double()
    return torch.cat([counts / len(ids), torch.tensor([len(ids)], dtype=torch.float64).log()])

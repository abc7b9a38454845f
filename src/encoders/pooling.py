"""One embedding for each sequence from the hidden states of its tokens.

Every pooling is over the real tokens of the call; a sequence without tokens has the embedding zero. Sums are computed
in float32 (float64 for float64).
"""

from typing import Any

import torch
import torch.nn as nn

from encoders.batch import Layout
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = ["POOLINGS", "AttentionPool", "LastPool", "MaxPool", "MeanPool", "build_pooling"]


class MeanPool(nn.Module):
    """The mean over a sequence's tokens.

    `forward` of every pooling takes the stack's ``hidden`` (``[B, T, D]``, or packed ``[1, total, D]``) with its
    `Layout`, and returns ``[N, D]``.

    Example:
        >>> from encoders.batch import make_layout
        >>> x = torch.tensor([[[1.0], [3.0]]])
        >>> MeanPool()(x, make_layout(x)).tolist()
        [[2.0]]
    """

    def forward(self, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
        wide = hidden.to(accumulation_dtype(hidden))
        return (_sum(wide, layout) / layout.lengths.clamp(min=1)[:, None].to(wide.dtype)).to(hidden.dtype)


class LastPool(nn.Module):
    """The last token of each sequence, in the order of the data, also for a bidirectional encoder."""

    def forward(self, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
        if layout.cu_seqlens is None:
            return hidden[:, -1] if hidden.shape[1] else hidden.new_zeros(hidden.shape[0], hidden.shape[2])
        if not hidden.shape[1]:
            return hidden.new_zeros(len(layout.lengths), hidden.shape[2])
        last = (layout.cu_seqlens[1 : len(layout.lengths) + 1].long() - 1).clamp(min=0)
        return torch.where((layout.lengths > 0)[:, None], hidden[0, last], hidden.new_zeros(()))


class MaxPool(nn.Module):
    """The largest value of each channel over a sequence's tokens."""

    def forward(self, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
        if not hidden.shape[1]:
            return hidden.new_zeros(len(layout.lengths), hidden.shape[2])
        if layout.cu_seqlens is None:
            return hidden.amax(1)
        largest = _max(hidden.to(accumulation_dtype(hidden)), layout)
        return torch.where((layout.lengths > 0)[:, None], largest, largest.new_zeros(())).to(hidden.dtype)


class AttentionPool(nn.Module):
    """A weighted mean; the weights are a softmax over each sequence of a learned score of each token.

    ``score_t = w . tanh(W h_t)``, after Bahdanau et al. (arXiv 1409.0473). ``w`` starts at zero: a plain mean.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.key = nn.Linear(hidden_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.query = nn.Linear(hidden_size, 1, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the key at random and the query with zero."""
        self.key.reset_parameters()
        nn.init.zeros_(self.query.weight)

    def forward(self, hidden: torch.Tensor, layout: Layout) -> torch.Tensor:
        if not hidden.shape[1]:
            return hidden.new_zeros(len(layout.lengths), hidden.shape[2])
        score = self.query(torch.tanh(self.key(hidden)))
        score, wide = (t.to(accumulation_dtype(hidden)) for t in (score, hidden))
        if layout.cu_seqlens is None:
            return (score.softmax(1) * wide).sum(1).to(hidden.dtype)
        segments = layout.segments()
        # The largest score only keeps exp in range; result and gradient do not depend on it.
        top = _max(score.detach(), layout)
        weight = (score - top[segments.clamp(max=len(top) - 1)]).exp()  # padding of a graph belongs to no sequence
        total = _sum(weight, layout)
        total = torch.where(total > 0, total, torch.ones_like(total))
        return (_sum(weight * wide, layout) / total).to(hidden.dtype)


POOLINGS = ("mean", "last", "max", "attention")


def build_pooling(name: str, hidden_size: int, device: Any = None, dtype: Any = None) -> nn.Module:
    """The pooling of that name.

    Raises:
        ValueError: no such pooling.
    """
    plain = {"mean": MeanPool, "last": LastPool, "max": MaxPool}
    if name in plain:
        return plain[name]()
    if name != "attention":
        raise value_error("build_pooling", "name", "must be one of " + ", ".join(POOLINGS), name)
    return AttentionPool(hidden_size, device=device, dtype=dtype)


def _sum(values: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Sum over the tokens of each sequence: ``[B, T, D]`` or ``[1, total, D]`` to ``[N, D]``."""
    if layout.cu_seqlens is None:
        return values.sum(1)
    count = len(layout.lengths)
    zeros = values.new_zeros(layout.rows(), values.shape[2])
    return zeros.index_add(0, layout.segments(), values[0])[:count]


def _max(values: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Largest value over the tokens of each packed sequence; -inf where there are none."""
    count = len(layout.lengths)
    lowest = values.new_full((layout.rows(), values.shape[2]), float("-inf"))
    index = layout.segments()[:, None].expand(-1, values.shape[2])
    return lowest.scatter_reduce(0, index, values[0], "amax", include_self=True)[:count]

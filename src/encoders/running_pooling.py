"""The pooling of an encoder over all tokens of a sequence so far, for every token of a stream.

After each token, the running embedding equals the one that `Encoder` returns for the sequence up to this token. The
state between calls has a fixed size: sums (in float64, so that long streams stay exact), counts, or a maximum.
"""

import abc
from typing import Any, Callable, Dict, Optional, Tuple, Type

import torch
import torch.nn as nn

from encoders.pooling import AttentionPool, LastPool, MaxPool, MeanPool
from myfla.utils.errors import value_error

__all__ = ["RunningPooling"]

State = Tuple[torch.Tensor, ...]


class RunningPooling:
    """Running embeddings for one of the built-in poolings.

    Args:
        pooling: an encoder's ``pooling``.
        hidden_size: D.

    Raises:
        ValueError: the pooling is not a built-in one.

    Example:
        >>> pool = RunningPooling(MeanPool(), hidden_size=1)
        >>> hidden, lengths = torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([2, 1])
        >>> embedding, state = pool(hidden, lengths, pool.start(2))
        >>> embedding.flatten().tolist()
        [1.0, 2.0, 8.0]
        >>> pool(torch.tensor([[5.0]]), torch.tensor([1, 0]), state)[0].tolist()
        [[3.0]]
    """

    def __init__(self, pooling: nn.Module, hidden_size: int) -> None:
        kinds: Dict[type, Optional[Type[_Kept]]] = {MeanPool: _Mean, LastPool: None, MaxPool: _Max,
                                                    AttentionPool: _Attention}
        if type(pooling) not in kinds:
            rule = "must be one of " + ", ".join(kind.__name__ for kind in kinds)
            raise value_error("RunningPooling", "pooling", rule, type(pooling).__name__)
        kept = kinds[type(pooling)]
        self._kept = None if kept is None else kept(pooling, hidden_size)

    def start(self, batch: int, device: Any = None) -> State:
        """The state of sequences that have no tokens yet: tensors ``[batch, ...]``, float64."""
        identity = () if self._kept is None else self._kept.identity
        return tuple(torch.full((batch, *shape), first, dtype=torch.float64, device=device)
                     for shape, first in identity)

    def __call__(self, hidden: torch.Tensor, lengths: torch.Tensor, state: State) -> Tuple[torch.Tensor, State]:
        """Continue by some tokens of each sequence.

        Args:
            hidden: ``[total, D]``, the encoder's hidden states of all new tokens, sequence after sequence.
            lengths: ``[N]`` int64, new tokens of each sequence, none included.
            state: the state that the call before returned, or `start`.

        Returns:
            ``(embedding, state)``: ``[total, D]`` after each token, and the state after all of them.
        """
        kept = self._kept
        if kept is None or not hidden.shape[0]:
            return hidden, state
        items = kept.items(hidden)
        if hidden.shape[0] == len(lengths) and bool((lengths == 1).all()):
            state = kept.combine(state, items)
            return kept.finish(state).to(hidden.dtype), state
        # Each sequence becomes a segment that begins with its state: a scan then needs no special first element.
        count = lengths + 1
        starts = count.cumsum(0) - count
        segment = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), count)
        place = torch.arange(len(segment), device=hidden.device) - starts[segment]
        first = place == 0
        joined = tuple(_interleave(old, new, first) for old, new in zip(state, items))
        scanned = _scan(kept.combine, joined, place, int(count.max()))
        ends = starts + count - 1
        pooled = kept.finish(tuple(part[~first] for part in scanned))
        return pooled.to(hidden.dtype), tuple(part[ends] for part in scanned)


def _interleave(old: torch.Tensor, new: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    out = new.new_empty(len(first), *new.shape[1:])
    out[first], out[~first] = old, new
    return out


def _scan(combine: Callable[[State, State], State], items: State, place: torch.Tensor, longest: int) -> State:
    """Inclusive scan within segments by doubling: log2(longest) rounds over all elements at once."""
    index = torch.arange(len(place), device=place.device)
    step = 1
    while step < longest:
        later = index[place >= step]
        update = combine(tuple(part[later - step] for part in items), tuple(part[later] for part in items))
        items = tuple(part.index_copy(0, later, new) for part, new in zip(items, update))
        step *= 2
    return items


class _Kept(abc.ABC):
    """The state of one pooling: shapes and initial values, the items of a token, joining two pieces, the result."""

    identity: Tuple[Tuple[Tuple[int, ...], float], ...]

    @abc.abstractmethod
    def __init__(self, pooling: Any, hidden_size: int) -> None: ...

    @abc.abstractmethod
    def items(self, hidden: torch.Tensor) -> State: ...

    @abc.abstractmethod
    def combine(self, left: State, right: State) -> State: ...

    @abc.abstractmethod
    def finish(self, items: State) -> torch.Tensor: ...


class _Mean(_Kept):
    def __init__(self, pooling: MeanPool, hidden_size: int) -> None:
        self.identity = (((hidden_size,), 0.0), ((1,), 0.0))

    def items(self, hidden: torch.Tensor) -> State:
        return hidden.double(), torch.ones_like(hidden[:, :1], dtype=torch.float64)

    def combine(self, left: State, right: State) -> State:
        return left[0] + right[0], left[1] + right[1]

    def finish(self, items: State) -> torch.Tensor:
        return items[0] / items[1]


class _Max(_Kept):
    def __init__(self, pooling: MaxPool, hidden_size: int) -> None:
        self.identity = (((hidden_size,), float("-inf")),)

    def items(self, hidden: torch.Tensor) -> State:
        return (hidden.double(),)

    def combine(self, left: State, right: State) -> State:
        return (torch.maximum(left[0], right[0]),)

    def finish(self, items: State) -> torch.Tensor:
        return items[0]


class _Attention(_Kept):
    """State: the largest score so far, the sum of weights, the weighted sum; weights are relative to that score."""

    def __init__(self, pooling: AttentionPool, hidden_size: int) -> None:
        self.pooling = pooling
        self.identity = (((1,), float("-inf")), ((1,), 0.0), ((hidden_size,), 0.0))

    def items(self, hidden: torch.Tensor) -> State:
        score = self.pooling.query(torch.tanh(self.pooling.key(hidden))).double()
        return score, torch.ones_like(score), hidden.double()

    def combine(self, left: State, right: State) -> State:
        top = torch.maximum(left[0], right[0])
        a, b = (left[0] - top).exp(), (right[0] - top).exp()
        return top, a * left[1] + b * right[1], a * left[2] + b * right[2]

    def finish(self, items: State) -> torch.Tensor:
        return items[2] / items[1]

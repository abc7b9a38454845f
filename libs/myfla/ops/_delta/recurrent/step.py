"""The rules for one token, with a row for each of the M = N HV matrices of the state.

A rule defines how tokens are prepared and how a token changes the state, both in place and in operations that autograd
can record. Many tokens are prepared at a time where rounding does not depend on the length of a tensor; exponentials
and gates, where it may, are computed token by token.
"""

from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.utils.constants import bags_of_rows
from myfla.utils.l2norm import l2norm, l2norm_

__all__ = ["DeltaStep", "DplrStep", "GlaStep", "How", "KdaStep", "StepRule"]

LARGE = 1 << 17
"""Elements of all states from which on embedding bags (`reader`) are faster."""

_HAS_BAGS = "fbgemm" in torch.backends.quantized.supported_engines
"""Whether this PyTorch has FBGEMM and the CPU can run it: without it embedding bags are plain loops."""

Read = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Tokens = Sequence[Any]
"""Tensors ``[tokens, ...]``, or None, one for each input of the rule."""


class How(NamedTuple):
    """Options that all tokens of a call share.

    Attributes:
        dtype: of the states.
        l2norm: bring q and k to length one.
        eps: ``[]``, added to squared lengths then; None where autograd, a compiler or a transform
            records the operations.
    """

    dtype: torch.dtype
    l2norm: bool
    eps: Optional[torch.Tensor]


class StepRule:
    """The interface between a rule and `loop`."""

    def tokens(self, x: Tokens, channel_decays: Tokens) -> Tokens:
        """The rule's inputs, ``[B, T, ...]``, of those of a `Call`; the keys are the second, the values the third."""
        raise NotImplementedError

    def ready(self, x: Tokens, rows: List[int], counts: List[int], activation: Any, how: How) -> Iterator[Any]:
        """For each token the arguments of `update` that follow the states.

        Args:
            x: the inputs of some tokens, one after another.
            rows, counts: matrices of the state and sequences of every token.
            activation: of the `Call`.
            how: options that they share.
        """
        raise NotImplementedError

    def single(self, x: Tokens, many: int, activation: Any, how: How) -> Sequence[Any]:
        """`ready` for one token of ``many`` matrices, without recording; ``x`` as in a `Call`."""
        x = self.tokens(x, ())
        return next(self.ready(x, [many], [len(x[2])], activation, how))

    def update(self, read: Read, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        """Write the state after ``state [M, K, V]`` into ``new``, which may be the same; returns o ``[M, V]``."""
        raise NotImplementedError

    def functional(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """o and the new state, in operations that autograd, compilers and transforms can record."""
        raise NotImplementedError


def as_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x.to(dtype)``, without a call where the dtype is the same: each takes a microsecond, and there are many."""
    return x if x.dtype is dtype else x.to(dtype)


def reader(states: torch.Tensor) -> Read:
    """The function that multiplies two rows with each matrix; one for all tokens and blocks of a call, so that results
    do not depend on the block.

    A batched product of so few rows reaches half the rate at which a CPU reads. The same sums are those of embedding
    bags: the table has all rows of all matrices, and the vectors are the weights. That kernel reads each row once.

    Args:
        states: all matrices, ``[M, K, V]``.

    Returns:
        ``read(rows [M, 2, K], matrices [M, K, V]) -> [M, 2, V]``. Not differentiable.
    """
    large = states.numel() >= LARGE and states.shape[2] >= 16 and states.dtype is torch.float32
    if large and _HAS_BAGS and type(states) is torch.Tensor and states.device.type == "cpu":
        return _read_bags
    return torch.bmm


def _read_bags(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    count, key, value = matrices.shape
    index, starts = bags_of_rows(count, 2, key)
    table, weights = matrices.view(-1, value), rows.reshape(-1)
    return torch.embedding_bag(table, index, starts, False, 0, False, weights)[0].view(count, 2, value)


def _by_token(x: Any, sizes: List[int]) -> Any:
    """A tensor, or None, for every token."""
    return [x] * len(sizes) if x is None or len(sizes) == 1 else x.split(sizes)


class DeltaStep(StepRule):
    """``S <- decay S,  delta = beta (v - k^T S),  o = q^T S + (q k) delta,  S <- S + k delta^T``; key and query read in
    one product. Inputs: q, k, v, g, beta, and log decays of key and value channels."""

    def tokens(self, x: Tokens, channel_decays: Tokens) -> Tokens:
        return (*x, *(channel_decays or (None, None)))

    def ready(self, x: Tokens, rows: List[int], counts: List[int], activation: Any, how: How) -> Iterator[Any]:
        q, k, v, *others = x
        vectors = zip(*(_by_token(t, rows) for t in self._vectors(q, k, v, how)))
        for many, ready, (g, beta, gk, gv) in zip(rows, vectors, zip(*(_by_token(t, counts) for t in others))):
            yield (*ready, *_gates(many, g, beta, gk, gv, activation, how.dtype))

    def single(self, x: Tokens, many: int, activation: Any, how: How) -> Sequence[Any]:
        q, k, v, g, beta = x
        return (*self._vectors(q, k, v, how), *_gates(many, g, beta, None, None, activation, how.dtype))

    def _vectors(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: How) -> Tuple[torch.Tensor, ...]:
        """Key over query ``[M, 2, K]``, the key ``[M, K, 1]``, their product ``[M, 1]`` and the value ``[M, V]``, M for
        all tokens."""
        (own, key), (heads, value), dtype = k.shape[-2:], v.shape[-2:], how.dtype
        if not q.dtype is k.dtype is v.dtype is dtype:  # a conversion to the same dtype takes a microsecond
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        read = torch.stack((k, q), dim=-2)
        if how.l2norm:
            read = l2norm(read) if how.eps is None else l2norm_(read, how.eps)
        if heads != own:
            read = read.repeat_interleave(heads // own, dim=-3)
        read = read.view(-1, 2, key)
        keys, queries = read.unbind(1)
        return read, keys.unsqueeze(2), (keys * queries).sum(-1, keepdim=True), v.reshape(-1, value)

    def update(self, read: Read, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        rows, k, match, v, beta, *decays = step
        for decay in decays:
            state = torch.mul(state, decay, out=new)
        if not decays and state.data_ptr() != new.data_ptr():
            new.copy_(state)
        of_key, of_query = read(rows, new).unbind(1)
        delta = torch.sub(v, of_key).mul_(beta)
        new.addcmul_(k, delta.unsqueeze(1))
        return torch.addcmul(of_query, match, delta)

    def functional(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        read, k, match, v, beta, *decays = step
        for decay in decays:
            state = state * decay
        of_key, of_query = torch.bmm(read, state).unbind(1)
        delta = beta * (v - of_key)
        return torch.addcmul(of_query, match, delta), torch.addcmul(state, k, delta.unsqueeze(1))


def _gates(
    many: int, g: Any, beta: torch.Tensor, gk: Any, gv: Any, activation: Any, dtype: torch.dtype
) -> List[torch.Tensor]:
    """beta ``[M, 1 or V]`` and the decays ``[M, K or 1, V or 1]`` of one token with M = ``many``."""
    if activation is not None:
        gate, beta = activation.gates(gk if g is None else g, beta)
        g, gk = (None, gate) if g is None else (gate, gk)
    beta = beta if beta.dtype is dtype else beta.to(dtype)
    ready = [beta.reshape(many, beta.numel() // many if many else 1)]
    if g is not None:
        g = g if g.dtype is dtype else g.to(dtype)
        ready.append(g.reshape(many, 1, 1).exp())
    if gk is not None:
        ready.append(as_dtype(gk, dtype).reshape(many, gk.shape[-1], 1).exp())
    if gv is not None:
        ready.append(as_dtype(gv, dtype).reshape(many, 1, gv.shape[-1]).exp())
    return ready


class KdaStep(DeltaStep):
    """The same with a g for each key channel."""

    def tokens(self, x: Tokens, channel_decays: Tokens) -> Tokens:
        q, k, v, g, beta = x
        return q, k, v, None, beta, g, None

    def single(self, x: Tokens, many: int, activation: Any, how: How) -> Sequence[Any]:
        q, k, v, g, beta = x
        return (*self._vectors(q, k, v, how), *_gates(many, None, beta, g, None, activation, how.dtype))


class DplrStep(StepRule):
    """``u = a^T S,  S <- exp(gk) S + b u^T + k v^T``, of which ``o = (q exp(gk))^T S + (q b) u + (q k) v`` needs no
    second reading of the state. Inputs: q, k, v, a, b, gk."""

    def tokens(self, x: Tokens, channel_decays: Tokens) -> Tokens:
        return x

    def ready(self, x: Tokens, rows: List[int], counts: List[int], activation: Any, how: How) -> Iterator[Any]:
        key, dtype = x[1].shape[-1], how.dtype
        q, k, v, a, b, gk = (as_dtype(t, dtype).reshape(-1, t.shape[-1]) for t in x)
        writes = torch.stack((b, k), dim=1)
        own = (q.unsqueeze(1) * writes).sum(-1, keepdim=True)
        for many, *step, decay in zip(rows, *(_by_token(t, rows) for t in (q, a, v, writes, own, gk))):
            yield (*step, decay.reshape(many, key).exp())

    def single(self, x: Tokens, many: int, activation: Any, how: How) -> Sequence[Any]:
        dtype = how.dtype
        q, k, v, a, b, gk = x if all(t.dtype is dtype for t in x) else [t.to(dtype) for t in x]
        (*_, key), (*_, value) = k.shape, v.shape
        keys = many, key
        q, writes = q.reshape(keys), torch.stack((b.reshape(keys), k.reshape(keys)), dim=1)
        own = (q.unsqueeze(1) * writes).sum(-1, keepdim=True)
        return q, a.reshape(keys), v.reshape(many, value), writes, own, gk.reshape(keys).exp()

    def update(self, read: Read, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        q, a, v, writes, own, decay = step
        found, of_query = read(torch.stack((a, q * decay), dim=1), state).unbind(1)
        torch.mul(state, decay.unsqueeze(2), out=new)
        new.baddbmm_(writes.transpose(1, 2), torch.stack((found, v), dim=1))
        return of_query.addcmul(own[:, 0], found).addcmul_(own[:, 1], v)

    def functional(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        q, a, v, writes, own, decay = step
        found, read = torch.bmm(torch.stack((a, q * decay), dim=1), state).unbind(1)
        o = read + own[:, 0] * found + own[:, 1] * v
        return o, state * decay.unsqueeze(2) + torch.bmm(writes.transpose(1, 2), torch.stack((found, v), dim=1))


class GlaStep(StepRule):
    """``S <- exp(g) S + k v^T,  o = q^T S``. Inputs: q, k, v, g (one number, or one for each key channel), and log
    decays of value channels."""

    def tokens(self, x: Tokens, channel_decays: Tokens) -> Tokens:
        return (*x, *(channel_decays or (None,)))

    def ready(self, x: Tokens, rows: List[int], counts: List[int], activation: Any, how: How) -> Iterator[Any]:
        (q, k, v, g, gv), dtype = x, how.dtype
        (heads, size), key = v.shape[-2:], k.shape[-1]
        width = key if g.dim() == v.dim() else 1
        q, k = (as_dtype(t, dtype) for t in (q, k))
        if heads != k.shape[-2]:
            q, k = (t.repeat_interleave(heads // k.shape[-2], dim=-2) for t in (q, k))
        values = as_dtype(v, dtype).reshape(-1, size)
        each = zip(rows, *(_by_token(t, rows) for t in (q.reshape(-1, 1, key), k.reshape(-1, key, 1), values)),
                   *(_by_token(t, counts) for t in (g, gv)))
        for many, query, write, value, decay, of_value in each:
            decays = [as_dtype(decay, dtype).reshape(many, width, 1).exp()]
            if of_value is not None:
                decays.append(as_dtype(of_value, dtype).reshape(many, 1, size).exp())
            yield (query, write, value, *decays)

    def single(self, x: Tokens, many: int, activation: Any, how: How) -> Sequence[Any]:
        dtype = how.dtype
        q, k, v, g = x if all(t.dtype is dtype for t in x) else [t.to(dtype) for t in x]
        (*_, own, key), (*_, heads, value) = k.shape, v.shape
        if heads != own:
            q, k = q.repeat_interleave(heads // own, dim=-2), k.repeat_interleave(heads // own, dim=-2)
        decay = g.reshape(many, key if g.dim() == v.dim() else 1, 1).exp()
        return q.reshape(many, 1, key), k.reshape(many, key, 1), v.reshape(many, value), decay

    def update(self, read: Read, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        q, k, v, *decays = step
        for decay in decays:
            state = torch.mul(decay, state, out=new)
        new.addcmul_(k, v.unsqueeze(1))
        return torch.bmm(q, new).squeeze(1)

    def functional(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        q, k, v, *decays = step
        for decay in decays:
            state = decay * state
        state = torch.addcmul(state, k, v.unsqueeze(1))
        return torch.bmm(q, state).squeeze(1), state

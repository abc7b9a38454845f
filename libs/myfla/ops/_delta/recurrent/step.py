"""One token: a row for each matrix of the state, M = N HV of them.

A rule that runs token by token says how tokens are made ready, many at a time where each element rounds alike in
tensors of any length (exponentials and gates may not, and are taken token by token), and how one of them changes the
state: in place, and in operations that autograd can follow.
"""

from typing import Any, Iterator, List, Sequence, Tuple

import torch

from myfla.ops._delta.call import Call
from myfla.utils.l2norm import l2norm

__all__ = ["DeltaStep", "DplrStep", "KdaStep", "StepRule"]

Tokens = Sequence[Any]
"""Tensors ``[tokens, ...]``, or None, one for each input of the rule."""


class StepRule:
    """What `loop` needs of a rule."""

    def tokens(self, call: Call) -> Tokens:
        """The rule's inputs, ``[B, T, ...]``; the keys are the second, the values the third."""
        raise NotImplementedError

    def ready(self, x: Tokens, rows: List[int], counts: List[int], call: Call, dtype: torch.dtype) -> Iterator[Any]:
        """For each token what `update` takes beside the states.

        Args:
            x: the inputs of some tokens, one after another.
            rows, counts: matrices of the state and sequences of every token.
            call: the options.
            dtype: the state's.
        """
        raise NotImplementedError

    def update(self, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        """Write the state after ``state [M, K, V]`` into ``new``, which may be the same; returns o ``[M, V]``."""
        raise NotImplementedError

    def recorded(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """o and the new state, in operations that autograd, compilers and transforms can follow."""
        raise NotImplementedError


def as_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x.to(dtype)``; a conversion to the same costs a microsecond, and there are many."""
    return x if x.dtype is dtype else x.to(dtype)


def _by_token(x: Any, sizes: List[int]) -> Any:
    """A tensor, or None, for every token."""
    return [x] * len(sizes) if x is None or len(sizes) == 1 else x.split(sizes)


class DeltaStep(StepRule):
    """``S <- decay S,  delta = beta (v - k^T S),  o = q^T S + (q k) delta,  S <- S + k delta^T``; key and query read in
    one product. Inputs: q, k, v, g, beta, and log decays of key and value channels."""

    def tokens(self, call: Call) -> Tokens:
        return (*call.x, *(call.more or (None, None)))

    def ready(self, x: Tokens, rows: List[int], counts: List[int], call: Call, dtype: torch.dtype) -> Iterator[Any]:
        q, k, v, g, beta, gk, gv = x
        (heads, size), key = v.shape[-2:], k.shape[-1]
        width = size if beta.dim() == v.dim() else 1
        read = torch.stack((as_dtype(k, dtype), as_dtype(q, dtype)), dim=-2)
        read = l2norm(read) if call.l2norm else read
        if heads != k.shape[-2]:
            read = read.repeat_interleave(heads // k.shape[-2], dim=-3)
        read = read.view(-1, 2, key)
        keys, queries = read.unbind(1)
        match = (keys * queries).sum(-1, keepdim=True)
        values = as_dtype(v, dtype).reshape(-1, size)
        each = zip(rows, *(_by_token(t, rows) for t in (read, keys.unsqueeze(2), match, values)),
                   *(_by_token(t, counts) for t in (g, beta, gk, gv)))
        for many, both, write, own, value, decay, strength, of_key, of_value in each:
            if call.activation is not None:
                gate = of_key if decay is None else decay
                gate, strength = call.activation.gates(gate, strength)
                decay, of_key = (gate, of_key) if decay is not None else (None, gate)
            decays = [
                as_dtype(t, dtype).reshape(many, *shape).exp()
                for t, shape in ((decay, (1, 1)), (of_key, (key, 1)), (of_value, (1, size))) if t is not None
            ]  # fmt: skip
            yield (both, write, own, value, as_dtype(strength, dtype).reshape(many, width), *decays)

    def update(self, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        read, k, match, v, beta, *decays = step
        for decay in decays:
            state = torch.mul(state, decay, out=new)
        if not decays and state.data_ptr() != new.data_ptr():
            new.copy_(state)
        of_key, of_query = torch.bmm(read, new).unbind(1)
        delta = torch.sub(v, of_key).mul_(beta)
        new.addcmul_(k, delta.unsqueeze(1))
        return torch.addcmul(of_query, match, delta)

    def recorded(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        read, k, match, v, beta, *decays = step
        for decay in decays:
            state = state * decay
        of_key, of_query = torch.bmm(read, state).unbind(1)
        delta = beta * (v - of_key)
        return torch.addcmul(of_query, match, delta), torch.addcmul(state, k, delta.unsqueeze(1))


class KdaStep(DeltaStep):
    """The same with a g for each key channel."""

    def tokens(self, call: Call) -> Tokens:
        q, k, v, g, beta = call.x
        return q, k, v, None, beta, g, None


class DplrStep(StepRule):
    """``u = a^T S,  S <- exp(gk) S + b u^T + k v^T``, of which ``o = (q exp(gk))^T S + (q b) u + (q k) v`` needs no
    second look at the state. Inputs: q, k, v, a, b, gk."""

    def tokens(self, call: Call) -> Tokens:
        return call.x

    def ready(self, x: Tokens, rows: List[int], counts: List[int], call: Call, dtype: torch.dtype) -> Iterator[Any]:
        key = x[1].shape[-1]
        q, k, v, a, b, gk = (as_dtype(t, dtype).reshape(-1, t.shape[-1]) for t in x)
        writes = torch.stack((b, k), dim=1)
        own = (q.unsqueeze(1) * writes).sum(-1, keepdim=True)
        for many, *step, decay in zip(rows, *(_by_token(t, rows) for t in (q, a, v, writes, own, gk))):
            yield (*step, decay.reshape(many, key).exp())

    def update(self, state: torch.Tensor, new: torch.Tensor, *step: torch.Tensor) -> torch.Tensor:
        q, a, v, writes, own, decay = step
        found, read = torch.bmm(torch.stack((a, q * decay), dim=1), state).unbind(1)
        torch.mul(state, decay.unsqueeze(2), out=new)
        new.baddbmm_(writes.transpose(1, 2), torch.stack((found, v), dim=1))
        return read.addcmul(own[:, 0], found).addcmul_(own[:, 1], v)

    def recorded(self, state: torch.Tensor, *step: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        q, a, v, writes, own, decay = step
        found, read = torch.bmm(torch.stack((a, q * decay), dim=1), state).unbind(1)
        o = read + own[:, 0] * found + own[:, 1] * v
        return o, state * decay.unsqueeze(2) + torch.bmm(writes.transpose(1, 2), torch.stack((found, v), dim=1))

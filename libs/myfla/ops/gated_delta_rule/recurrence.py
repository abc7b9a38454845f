"""The recurrence token by token: what decoding and training on short inputs run on.

Every token is computed from slices of one shape, so that a sequence fed in pieces gives, bit for bit, what it gives in
one. Keys and queries read the decayed state in one product; the query's share of the update is added after.
"""

from typing import Iterator, List, NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.tokens import TokenLayout
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.utils.autocast import without_autocast
from myfla.utils.autograd import records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.l2norm import l2norm
from myfla.utils.large import empty_large
from myfla.utils.tracing import tracing

__all__ = ["recurrence"]

BLOCK = 1 << 20
"""Elements of the states that one round of operations works on, on a CPU: they stay in the cache between them."""


class _Token(NamedTuple):
    """One step's inputs."""

    q: torch.Tensor  # [N, H, K]
    k: torch.Tensor  # [N, H, K]
    v: torch.Tensor  # [N, HV, V]
    beta: torch.Tensor  # [N, HV] or [N, HV, V]
    g: Optional[torch.Tensor]  # [N, HV]
    gk: Optional[torch.Tensor]  # [N, HV, K]
    gv: Optional[torch.Tensor]  # [N, HV, V]


class _Step(NamedTuple):
    """One step, ready for the update: a row for each matrix of the state, M = N HV of them."""

    read: torch.Tensor  # [M, 2, K]: key, query
    k: torch.Tensor  # [M, K, 1]
    match: torch.Tensor  # [M, 1]: product of key and query
    v: torch.Tensor  # [M, V]
    beta: torch.Tensor  # [M, 1 or V]
    decays: List[torch.Tensor]  # factors, each [M, K or 1, V or 1]


@without_autocast
def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    g: Optional[torch.Tensor],
    gk: Optional[torch.Tensor],
    gv: Optional[torch.Tensor],
    state: Optional[torch.Tensor],
    scale: float,
    activation: Activation,
    cu_seqlens: Optional[torch.Tensor],
    inplace: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Run the rule over checked arguments.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``.
        beta: ``[B, T, HV]`` or ``[B, T, HV, V]``.
        g, gk, gv: ``[B, T, HV]``, ``[B, T, HV, K]``, ``[B, T, HV, V]``, or None.
        state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        activation: what is done to the inputs first.
        cu_seqlens: ``[N + 1]`` or None.
        inplace: ``state`` may be written.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype and the final state ``[N, HV, K, V]``, float32 or float64.
    """
    dtype = accumulation_dtype(q, k, v, beta, g, gk, gv, state)
    layout = TokenLayout(q.shape[0], q.shape[1], cu_seqlens, q.device)
    given, heads = state, v.shape[2]
    if state is None:
        state = v.new_zeros(layout.rows, heads, k.shape[3], v.shape[3], dtype=dtype)
    state = layout.sort(state.to(dtype)).contiguous()
    tokens = layout.split(q, k, v, beta, g, gk, gv)
    if not layout.active:
        return torch.zeros_like(v), layout.unsort(state)
    steps = (_prepare(_Token(*token), heads, activation, dtype) for token in tokens)
    active, flat = [rows * heads for rows in layout.active], state.flatten(0, 1)
    # The state that is returned is no view: a compiler would make another graph for each shape of what lies behind one.
    if tracing() or records(q, k, v, beta, g, gk, gv, state, activation.A_log, activation.dt_bias):
        outputs, final = _recorded(steps, active, flat, scale)
        final = final.view(state.shape)
        final = final.clone() if tracing() else final
    else:
        own = inplace or state is not given
        final = state if own else empty_large(*state.shape, dtype=dtype, device=state.device)
        outputs = _written(steps, active, flat, final.flatten(0, 1), scale)
    outputs = [x.view(-1, heads, x.shape[1]) for x in outputs]
    return layout.merge(outputs, v.dtype), layout.unsort(final)


def _prepare(token: _Token, heads: int, activation: Activation, dtype: torch.dtype) -> _Step:
    """A token's inputs in the state's number format, a row for each of its matrices."""
    g, beta = activation.gates(token.g, token.beta)
    read = torch.stack((_wide(token.k, dtype), _wide(token.q, dtype)), dim=2)
    read = l2norm(read) if activation.l2norm else read
    if heads != read.shape[1]:
        read = read.repeat_interleave(heads // read.shape[1], dim=1)
    rows, key, value = len(read) * heads, read.shape[3], token.v.shape[2]
    read = read.view(rows, 2, key)
    k, q = read.unbind(1)
    decays = [
        _wide(x, dtype).view(shape).exp()
        for x, shape in ((g, (rows, 1, 1)), (token.gk, (rows, key, 1)), (token.gv, (rows, 1, value)))
        if x is not None
    ]
    beta = _wide(beta, dtype).view(rows, 1 if beta.dim() == 2 else value)
    v = _wide(token.v, dtype).view(rows, value)
    return _Step(read, k.unsqueeze(2), (k * q).sum(-1, keepdim=True), v, beta, decays)


def _wide(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # a conversion to the same costs a microsecond, and there are many


def _written(
    steps: Iterator[_Step], active: List[int], state: torch.Tensor, new: torch.Tensor, scale: float
) -> List[torch.Tensor]:
    """The first step writes from ``state`` to ``new``, which may be the same; the others write over ``new``."""
    outputs, (rows, key, value) = [], state.shape
    room = state.new_empty(rows, 2, value), state.new_empty(rows, value)
    block = max(1, BLOCK // max(1, key * value)) if state.device.type == "cpu" else rows
    for step, count in zip(steps, active):
        if count < rows and new.data_ptr() != state.data_ptr():
            new[count:] = state[count:]  # sequences without a token
        tensors: Tuple[torch.Tensor, ...] = (state, new, *room)
        if count < rows:
            tensors = tuple(x[:count] for x in tensors)
        if count <= block:
            outputs.append(_update(*tensors, *step[:5], *step.decays, scale))
        else:
            parts = zip(*(x.split(block) for x in (*tensors, *step[:5], *step.decays)))
            outputs.append(torch.cat([_update(*part, scale) for part in parts]))
        state = new
    return outputs


def _update(state, new, found, delta, read, k, match, v, beta, *rest):
    """``S <- decay S``, ``delta = beta (v - k^T S)``, ``o = q^T S + (q k) delta``, ``S <- S + k delta^T``.

    Args:
        state, new: ``[M, K, V]`` each, the old one and where the new one goes; they may be the same.
        found, delta: ``[M, 2, V]`` and ``[M, V]``, to be written; contiguous, or the product takes each matrix alone.
        read, k, match, v, beta: see `_Step`.
        rest: its decays, and the scale of the output.

    Returns:
        o ``[M, V]``.
    """
    *decays, scale = rest
    for decay in decays:
        state = torch.mul(state, decay, out=new)
    if state.data_ptr() != new.data_ptr():
        new.copy_(state)
    torch.bmm(read, new, out=found)
    torch.sub(v, found[:, 0], out=delta).mul_(beta)
    new.addcmul_(k, delta.unsqueeze(1))
    return torch.addcmul(found[:, 1], match, delta).mul_(scale)


def _recorded(
    steps: Iterator[_Step], active: List[int], state: torch.Tensor, scale: float
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """The same, in operations that autograd, compilers and transforms can follow: nothing is written."""
    outputs: List[torch.Tensor] = []
    done: List[torch.Tensor] = []
    for step, count in zip(steps, active):
        if count < len(state):
            done.append(state[count:])
            state = state[:count]
        for decay in step.decays:
            state = state * decay
        found = torch.bmm(step.read, state)
        delta = step.beta * (step.v - found[:, 0])
        outputs.append(torch.addcmul(found[:, 1], step.match, delta) * scale)
        state = torch.addcmul(state, step.k, delta.unsqueeze(1))
    return outputs, torch.cat([state] + done[::-1]) if done else state

"""The recurrence token by token: what decoding and training on short inputs run on.

Every token is computed from slices of one shape, so that a sequence fed in pieces gives, bit for bit, what it gives in
one. Keys and queries read the decayed state in one product; the query's share of the update is added after.
"""

from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from myfla.ops.common.tokens import TokenLayout
from myfla.ops.common.tuning import STEP_BLOCK, STEP_WHOLE
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.utils.autocast import without_autocast
from myfla.utils.autograd import records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.l2norm import l2norm
from myfla.utils.tracing import tracing

__all__ = ["Inputs", "one_token", "recurrence"]

SEGMENT = 1 << 16
"""Elements of one input that are prepared at a time; bounds the memory of a long sequence."""


class Inputs(NamedTuple):
    """What the rule is given: ``[B, T, ...]``, or token after token in one axis."""

    q: torch.Tensor  # [..., H, K]
    k: torch.Tensor  # [..., H, K]
    v: torch.Tensor  # [..., HV, V]
    beta: torch.Tensor  # [..., HV] or [..., HV, V]
    g: Optional[torch.Tensor]  # [..., HV]
    gk: Optional[torch.Tensor]  # [..., HV, K]
    gv: Optional[torch.Tensor]  # [..., HV, V]


class _Step(NamedTuple):
    """One token, ready for the update: a row for each matrix of the state, M = N HV of them."""

    read: torch.Tensor  # [M, 2, K]: key, query
    k: torch.Tensor  # [M, K, 1]
    match: torch.Tensor  # [M, 1]: product of key and query
    v: torch.Tensor  # [M, V]
    beta: torch.Tensor  # [M, 1 or V]
    decays: List[torch.Tensor]  # factors, each [M, K or 1, V or 1]


_Vectors = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


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
    inputs = Inputs(q, k, v, beta, g, gk, gv)
    recorded = tracing() or records(*inputs, state, activation.A_log, activation.dt_bias)
    if cu_seqlens is None and q.shape[1] == 1 and state is not None and not recorded:
        return one_token(state, inputs, scale, activation, dtype, inplace)
    layout = TokenLayout(q.shape[0], q.shape[1], cu_seqlens, q.device)
    given, heads = state, v.shape[2]
    if state is None:
        state = v.new_zeros(layout.rows, heads, k.shape[3], v.shape[3], dtype=dtype)
    state = layout.sort(_as(state, dtype)).contiguous()
    if not layout.active:
        return torch.zeros_like(v), layout.unsort(state)
    steps = _steps(layout, inputs, activation, dtype)
    active, flat = [rows * heads for rows in layout.active], state.flatten(0, 1)
    # The state that is returned is no view: a compiler would make another graph for each shape of what lies behind one.
    if recorded:
        outputs, final = _recorded(steps, active, flat)
        final = final.view(state.shape)
        final = final.clone() if tracing() else final
    elif inplace or state is not given:
        outputs, final = _written(steps, active, flat, flat), state
    else:
        final = state.new_empty(state.shape, dtype=dtype)
        outputs = _written(steps, active, flat, final.flatten(0, 1))
    o = layout.merge([x.view(-1, heads, x.shape[1]) for x in outputs]) * scale
    return _as(o, v.dtype), layout.unsort(final)


@without_autocast
def one_token(
    state: torch.Tensor, inputs: Inputs, scale: float, activation: Activation, dtype: torch.dtype, inplace: bool
) -> Tuple[torch.Tensor, torch.Tensor]:
    """A token for each row and nothing else, as decoding has it: the same operations with less around them.

    Args:
        state: ``[N, HV, K, V]``; not written unless ``inplace``.
        inputs: what the rule is given, T = 1; nothing that autograd records.
        scale, activation, inplace: as `recurrence` has them.
        dtype: the state's number format.

    Returns:
        as `recurrence`.
    """
    shape, (key, value) = inputs.v.shape, state.shape[2:]
    old = _as(state, dtype).contiguous()
    final = old if inplace or old is not state else old.new_empty(old.shape, dtype=dtype)
    flat, rows = old.view(-1, key, value), shape[0] * shape[2]
    step = _Step(*_vectors(inputs, activation, dtype), *_gates(rows, inputs, inputs[3:], activation, dtype))
    (o,) = _written((step,), (rows,), flat, flat if final is old else final.view(-1, key, value))
    return _as(o.mul_(scale).view(shape), inputs.v.dtype), final


def _steps(layout: TokenLayout, inputs: Inputs, activation: Activation, dtype: torch.dtype) -> Iterator[_Step]:
    """Every token's inputs, prepared for many tokens at a time."""
    heads, size = inputs.v.shape[2], max(inputs.k.shape[3], inputs.v.shape[3])
    flat = [x if x is None else layout.flat(x) for x in inputs]
    for counts, part in layout.segments(SEGMENT // (heads * size), *flat):
        yield from _prepare(Inputs(*part), [count * heads for count in counts], counts, activation, dtype)


def _prepare(
    inputs: Inputs, rows: List[int], counts: List[int], activation: Activation, dtype: torch.dtype
) -> Iterator[_Step]:
    """Inputs in the state's number format, token by token.

    What rounds alike in tensors of any length is done for all tokens at once. Exponentials and gates may not, and are
    taken one by one.

    Args:
        inputs: token after token.
        rows, counts: matrices of the state and sequences of every token.
        activation, dtype: what is done to them first, and the state's number format.
    """
    ready: Any = _vectors(inputs, activation, dtype)
    gates: Any = inputs[3:]
    if len(rows) > 1:
        ready = zip(*(x.split(rows) for x in ready))
        gates = zip(*([None] * len(rows) if x is None else x.split(counts) for x in gates))
    else:
        ready, gates = (ready,), (gates,)
    for many, (read, write, match, v), given in zip(rows, ready, gates):
        yield _Step(read, write, match, v, *_gates(many, inputs, given, activation, dtype))


def _vectors(inputs: Inputs, activation: Activation, dtype: torch.dtype) -> _Vectors:
    """The first four of a `_Step`, for any number of tokens."""
    k, v = inputs.k, inputs.v
    heads = v.shape[-2]
    read = torch.stack((_as(k, dtype), _as(inputs.q, dtype)), dim=-2)
    read = l2norm(read) if activation.l2norm else read
    if heads != k.shape[-2]:
        read = read.repeat_interleave(heads // k.shape[-2], dim=-3)
    read = read.view(-1, 2, k.shape[-1])
    k, q = read.unbind(1)
    return read, k.unsqueeze(2), (k * q).sum(-1, keepdim=True), _as(v, dtype).reshape(-1, v.shape[-1])


def _gates(
    many: int, inputs: Inputs, given: Sequence[Any], activation: Activation, dtype: torch.dtype
) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """The last two of a `_Step`, from the beta, g, gk and gv of one token with so many matrices of the state."""
    beta, g, gk, gv = given
    g, beta = activation.gates(g, beta)
    decays = [] if g is None else [_as(g, dtype).reshape(many, 1, 1).exp()]
    if gk is not None:
        decays.append(_as(gk, dtype).reshape(many, -1, 1).exp())
    if gv is not None:
        decays.append(_as(gv, dtype).reshape(many, 1, -1).exp())
    width = inputs.v.shape[-1] if inputs.beta.dim() == inputs.v.dim() else 1
    return _as(beta, dtype).reshape(many, width), decays


def _as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # a conversion to the same costs a microsecond, and there are many


def _written(
    steps: Iterable[_Step], active: Sequence[int], state: torch.Tensor, new: torch.Tensor
) -> List[torch.Tensor]:
    """The first step writes from ``state`` to ``new``, which may be the same; the others write over ``new``."""
    outputs, (rows, key, value) = [], state.shape
    whole = state.numel() <= STEP_WHOLE or state.device.type != "cpu"
    block = rows if whole else max(1, STEP_BLOCK // max(1, key * value))
    for step, count in zip(steps, active):
        if count < rows and new is not state:
            new[count:] = state[count:]  # sequences without a token
        old, now = (state, new) if count == rows else (state[:count], new[:count])
        if count <= block:
            outputs.append(_update(old, now, *step[:5], *step.decays))
        else:
            parts = zip(*(x.split(block) for x in (old, now, *step[:5], *step.decays)))
            outputs.append(torch.cat([_update(*part) for part in parts]))
        state = new
    return outputs


def _update(
    state: torch.Tensor, new: torch.Tensor, rows: torch.Tensor, k: torch.Tensor, match: torch.Tensor,
    v: torch.Tensor, beta: torch.Tensor, *decays: torch.Tensor,
) -> torch.Tensor:
    """``S <- decay S``, ``delta = beta (v - k^T S)``, ``o = q^T S + (q k) delta``, ``S <- S + k delta^T``.

    Args:
        state, new: ``[M, K, V]`` each, the old one and where the new one goes; they may be the same.
        rows, k, match, v, beta, decays: see `_Step`.

    Returns:
        o ``[M, V]``, not scaled.
    """
    for decay in decays:
        state = torch.mul(state, decay, out=new)
    if not decays and state.data_ptr() != new.data_ptr():
        new.copy_(state)
    of_key, of_query = torch.bmm(rows, new).unbind(1)
    delta = torch.sub(v, of_key).mul_(beta)
    new.addcmul_(k, delta.unsqueeze(1))
    return torch.addcmul(of_query, match, delta)


def _recorded(
    steps: Iterator[_Step], active: List[int], state: torch.Tensor
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
        of_key, of_query = torch.bmm(step.read, state).unbind(1)
        delta = step.beta * (step.v - of_key)
        outputs.append(torch.addcmul(of_query, step.match, delta))
        state = torch.addcmul(state, step.k, delta.unsqueeze(1))
    return outputs, torch.cat([state] + done[::-1]) if done else state

"""The recurrence token by token, for decoding and for training on short inputs.

Every token is computed from slices of one shape, so that a sequence given in pieces has, bit for bit, the results of
the whole sequence.
"""

from typing import Any, Iterable, Iterator, List, Optional, Sequence, Tuple, cast

import torch

from myfla.ops._delta.call import Call, Result, call_dtype, call_tensors, is_step
from myfla.ops._delta.layout import sort_rows, unsort_rows
from myfla.ops._delta.plans import Run
from myfla.ops._delta.recurrent.step import How, Read, StepRule, as_dtype, reader
from myfla.ops._delta.recurrent.tokens import TokenLayout
from myfla.utils.autograd import records
from myfla.utils.constants import number
from myfla.utils.dtypes import without_autocast
from myfla.utils.tracing import tracing

__all__ = ["plan_token", "token_loop"]

STEP_BLOCK = 1 << 20
"""Elements of large states that a recurrent step updates at a time on a CPU, so that they stay in the cache."""

STEP_WHOLE = 4 * STEP_BLOCK
"""Elements of states up to which all are updated at once: they fit the last-level cache, and more calls would take
longer."""

SEGMENT = 1 << 16
"""Elements of one input that are prepared at a time; bounds the memory of a long sequence."""


def token_loop(call: Call) -> Result:
    """Run the rule; the caller's state is overwritten and returned if the call allows that, and not changed
    otherwise."""
    return _run(call.x[2], call)


@without_autocast
def _run(v: torch.Tensor, call: Call) -> Result:
    rule, dtype, given = call.family.step, call_dtype(call), call.initial_state
    functional = tracing(v) or records(*call_tensors(call))
    (batch, tokens, heads, value), key = v.shape, call.x[1].shape[3]
    step = None if functional else plan_token(call)
    if step is not None:
        return cast(Result, step(call.x, call.activation, given))
    layout = TokenLayout(batch, tokens, call.cu_seqlens, v.device)
    if given is None:
        state = v.new_zeros(layout.rows, heads, key, value, dtype=dtype)
    else:
        state = sort_rows(layout.order, as_dtype(given, dtype)).contiguous()
    if not layout.active:
        state = state.clone() if state is given else state
        return v.new_zeros(v.shape, dtype=call.out_dtype), unsort_rows(layout.order, state)
    steps = _steps(layout, rule, call, dtype, functional)
    active, flat = [rows * heads for rows in layout.active], state.flatten(0, 1)
    # The returned state is no view: a compiler would make another graph for each shape of the tensor behind it.
    if functional:
        outputs, final = _functional(rule, steps, active, flat)
        final = final.reshape(state.shape)
        final = final.clone() if tracing(v) or final._base is not None else final
    elif call.inplace or state is not given:
        outputs, final = _written(rule, steps, active, flat, flat), state
    else:
        final = state.new_empty(state.shape)
        outputs = _written(rule, steps, active, flat, final.flatten(0, 1))
    o = layout.merge([t.reshape(-1, heads, value) for t in outputs]) * call.scale
    return as_dtype(o, call.out_dtype), unsort_rows(layout.order, final)


def plan_token(call: Call, wanted: bool = True) -> Optional[Run]:
    """The function that computes decoding steps like this call, without the checks and conversions of other calls;
    final states only if ``wanted``. None for calls that need more than that."""
    state, dtype = call.initial_state, call_dtype(call)
    if not is_step(call) or state is None or call.channel_decays or records(*call_tensors(call)):
        return None
    if state.dtype is not dtype or not state.is_contiguous():
        return None
    return _one_token(call, state, dtype, wanted)


def _one_token(call: Call, state: torch.Tensor, dtype: torch.dtype, wanted: bool) -> Run:
    """The function of one token; it depends on sizes and options only. Autocast is off, and no operation is
    recorded."""
    rule, shape, of_o, out_dtype = call.family.step, state.shape, call.x[2].shape, call.out_dtype
    flat = state.view(-1, *shape[2:])
    matrices, many, inplace = flat.shape, flat.shape[0], call.inplace
    how, scale = _how(call, dtype, False), number(call.scale, dtype)
    read, block = reader(flat), _block(flat)

    def step(
        x: Tuple[Any, ...], activation: Any, state: Any, _: Any = None
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        new = state if inplace else torch.empty_like(state)
        old = state.view(matrices)
        after, made = old if inplace else new.view(matrices), rule.single(x, many, activation, how)
        o = _update(rule, read, old, after, made, block) if block else rule.update(read, old, after, *made)
        o = o.mul_(scale).view(of_o)
        return o if o.dtype is out_dtype else o.to(out_dtype), new if wanted else None

    return step


def _how(call: Call, dtype: torch.dtype, functional: bool) -> How:
    return How(dtype, call.l2norm, None if functional or not call.l2norm else number(1e-6, dtype))


def _steps(
    layout: TokenLayout, rule: StepRule, call: Call, dtype: torch.dtype, functional: bool
) -> Iterator[Tuple[torch.Tensor, ...]]:
    """Prepare every token, many tokens at a time."""
    heads, size = call.x[2].shape[2], max(call.x[1].shape[3], call.x[2].shape[3])
    how, given = _how(call, dtype, functional), rule.tokens(call.x, call.channel_decays)
    flat = [t if t is None else layout.flat(t) for t in given]
    for counts, part in layout.segments(SEGMENT // (heads * size), *flat):
        yield from rule.ready(part, [count * heads for count in counts], counts, call.activation, how)


def _written(
    rule: StepRule, steps: Iterable[Any], active: Sequence[int], state: torch.Tensor, new: torch.Tensor
) -> List[torch.Tensor]:
    """The first step writes from ``state`` to ``new``, which may be the same; the others overwrite ``new``."""
    outputs, rows, read, block = [], state.shape[0], reader(state), _block(state)
    for step, count in zip(steps, active):
        if count < rows and new is not state:
            new[count:] = state[count:]  # sequences without a token
        old, now = (state, new) if count == rows else (state[:count], new[:count])
        outputs.append(_update(rule, read, old, now, step, block))
        state = new
    return outputs


def _block(state: torch.Tensor) -> int:
    """The number of matrices of ``state [M, K, V]`` that a step computes at a time; 0 for all of them."""
    if state.numel() <= STEP_WHOLE or state.device.type != "cpu":
        return 0
    return max(1, STEP_BLOCK // state[0].numel())


def _update(
    rule: StepRule, read: Read, old: torch.Tensor, new: torch.Tensor, step: Sequence[torch.Tensor], block: int
) -> torch.Tensor:
    """`StepRule.update`, ``block`` matrices at a time."""
    if not block:
        return rule.update(read, old, new, *step)
    return torch.cat([rule.update(read, *part) for part in zip(*(t.split(block) for t in (old, new, *step)))])


def _functional(
    rule: StepRule, steps: Iterable[Any], active: List[int], state: torch.Tensor
) -> Tuple[List[torch.Tensor], torch.Tensor]:
    """All steps in operations that autograd, compilers and transforms can record: nothing is overwritten."""
    outputs: List[torch.Tensor] = []
    done: List[torch.Tensor] = []
    for step, count in zip(steps, active):
        if count < len(state):
            done.append(state[count:])
            state = state[:count]
        o, state = rule.functional(state, *step)
        outputs.append(o)
    return outputs, torch.cat([state, *done[::-1]]) if done else state

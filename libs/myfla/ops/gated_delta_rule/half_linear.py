"""From chunk to chunk in one product each: the scan with the fewest operations.

``delta = T V + reader S^T`` put into ``S' = whole S + delta^T handed`` leaves a state that is multiplied by one matrix
and added to another, both known for all chunks before the first state is::

    S' = S (whole I + reader^T handed) + (T V)^T handed

What the states read and write is as in `half_scan`, whose functions these replace, but here the state's own product is
in float32. That costs a GPU more time than the kernels of `half_scan`, and PyTorch launches one for each chunk, not
four: outside of CUDA graphs this is the faster one.
"""

from typing import Optional, Sequence

import torch

from myfla.ops.common.half_products import accumulate, product
from myfla.ops.common.half_tokens import Cut
from myfla.ops.gated_delta_rule.half_passes import advance
from myfla.ops.gated_delta_rule.half_scan import Step, join_groups


def scan_linear(
    step: Step, delta: torch.Tensor, reader: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor,
    state: torch.Tensor, kept: torch.Tensor,
) -> torch.Tensor:
    """`half_scan.scan_by_steps`; ``state`` is not written."""
    _prepare(step, state, whole, kept[:, 0])
    effects = _effects(reader, handed, whole, state.dtype)
    states = _each(delta.transpose(2, 3), handed, state.dtype)
    final = _walk(states.unbind(1), effects.unbind(1), state)
    kept[:, 0].copy_(state)
    kept[:, 1:].copy_(states[:, :-1])
    _add(delta, reader, kept.transpose(2, 3))
    return final


def back_linear(
    step: Step, cut: Cut, told: torch.Tensor, asked: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor,
    passed: Optional[torch.Tensor], dstate: torch.Tensor, kept: torch.Tensor,
) -> torch.Tensor:
    """`half_scan.back_by_steps`; ``dstate`` is not written."""
    _prepare(step, dstate.new_empty(cut.rows, *dstate.shape[1:]), whole, kept[:, 0])
    chunk = handed.shape[2]
    effects = list(_effects(asked[:, :, :chunk], handed, whole, dstate.dtype).transpose(2, 3).unbind(1))[::-1]
    given = _each(told.transpose(2, 3), asked, dstate.dtype)
    backwards = given.unbind(1)[::-1]
    if passed is not None:
        fresh = _walk(backwards, effects, dstate.new_zeros(cut.rows, *dstate.shape[1:]), keep=False)
        dstate = join_groups(cut, fresh, passed, dstate, back=True)[0]
    first = _walk(backwards, effects, dstate)
    kept[:, -1].copy_(dstate)
    kept[:, :-1].copy_(given[:, 1:])
    _add(told[:, :, :chunk], handed, kept.transpose(2, 3))
    return first


def _prepare(step: Step, state: torch.Tensor, whole: torch.Tensor, low: torch.Tensor) -> None:
    """Have a compiled step compiled now, for results that nobody reads: in a CUDA graph, where it is what runs, it is
    too late for that."""
    if step is not advance:
        step(torch.empty_like(state), whole.transpose(0, 1).contiguous()[0], low)


def _walk(
    given: Sequence[torch.Tensor], effects: Sequence[torch.Tensor], state: torch.Tensor, keep: bool = True
) -> torch.Tensor:
    """``S <- S effect + given``, with ``keep`` in the memory of ``given``."""
    for x, effect in zip(given, effects):
        state = x.baddbmm_(state, effect) if keep else torch.baddbmm(x, state, effect)
    return state


def _effects(reader: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``whole I + reader^T handed``, ``[rows, n, K, K]``."""
    effects = _each(reader.transpose(2, 3), handed, dtype)
    effects.diagonal(0, 2, 3).add_(whole.squeeze(-1))
    return effects


def _each(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``a b`` of ``[rows, n, ...]``."""
    return product(a.flatten(0, 1), b.flatten(0, 1), dtype).unflatten(0, a.shape[:2])


def _add(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a b`` of ``[rows, n, ...]``."""
    accumulate(total.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1))

"""From chunk to chunk in one product each: the scan with the fewest operations.

``delta = T V - reader S^T`` put into ``S' = whole S + delta^T handed`` leaves a state that is multiplied by one matrix
and added to another, both known for all chunks before the first state is::

    S' = S (whole I - reader^T handed) + (T V)^T handed

What the states read and write is as in `half_scan`, whose functions these replace, but here the state's own product is
in float32. That costs a GPU more time than the kernels of `half_scan`, and PyTorch launches one for each chunk, not
four: outside of CUDA graphs this is the faster one.
"""

from typing import Optional, Sequence

import torch

from myfla.ops.common.half_products import accumulate, product
from myfla.ops.gated_delta_rule.half_passes import advance, retreat
from myfla.ops.gated_delta_rule.half_scan import Step, join_groups
from myfla.ops.gated_delta_rule.half_tokens import Cut


def scan_linear(
    step: Step, delta: torch.Tensor, reader: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor,
    state: torch.Tensor, kept: torch.Tensor,
) -> torch.Tensor:
    """`half_scan.scan_by_steps`; ``state`` is not written."""
    _prepare(step, advance, state, whole, kept[:, 0])
    effects = _effects(reader, handed, whole, state.dtype)
    states = _each(delta.transpose(2, 3), handed, state.dtype)
    final = _walk(states.unbind(1), effects.unbind(1), state)
    kept[:, 0].copy_(state)
    kept[:, 1:].copy_(states[:, :-1])
    _add(delta, reader, kept.transpose(2, 3), -1.0)
    return final


def back_linear(
    step: Step, cut: Cut, ddelta: torch.Tensor, reader: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor,
    given: torch.Tensor, passed: Optional[torch.Tensor], dstate: torch.Tensor, kept: torch.Tensor,
) -> torch.Tensor:
    """`half_scan.back_by_steps`; ``given`` is overwritten, ``dstate`` is not."""
    _prepare(step, retreat, given[:, 0], whole, given[:, 0], kept[:, 0])
    effects = list(_effects(reader, handed, whole, given.dtype).transpose(2, 3).unbind(1))[::-1]
    given = _add(given, ddelta.transpose(2, 3), reader, -1.0)
    backwards = given.unbind(1)[::-1]
    if passed is not None:
        fresh = _walk(backwards, effects, dstate.new_zeros(cut.rows, *dstate.shape[1:]), keep=False)
        dstate = join_groups(cut, fresh, passed, dstate, back=True)[0]
    first = _walk(backwards, effects, dstate)
    kept[:, -1].copy_(dstate)
    kept[:, :-1].copy_(given[:, 1:])
    _add(ddelta, handed, kept.transpose(2, 3))
    return first


def _prepare(step: Step, plain: Step, state: torch.Tensor, whole: torch.Tensor, *more: torch.Tensor) -> None:
    """Have a compiled step compiled now, for results that nobody reads: in a CUDA graph, where it is what runs, it is
    too late for that."""
    if step is not plain:
        unread = torch.empty(state.shape, dtype=state.dtype, device=state.device)
        step(unread, whole.transpose(0, 1).contiguous()[0], *more)


def _walk(
    given: Sequence[torch.Tensor], effects: Sequence[torch.Tensor], state: torch.Tensor, keep: bool = True
) -> torch.Tensor:
    """``S <- S effect + given``, with ``keep`` in the memory of ``given``."""
    for x, effect in zip(given, effects):
        state = x.baddbmm_(state, effect) if keep else torch.baddbmm(x, state, effect)
    return state


def _effects(reader: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``whole I - reader^T handed``, ``[rows, n, K, K]``."""
    effects = _each(reader.transpose(2, 3), handed, dtype, -1.0)
    effects.diagonal(0, 2, 3).add_(whole.squeeze(-1))
    return effects


def _each(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype, alpha: float = 1.0) -> torch.Tensor:
    """``alpha a b`` of ``[rows, n, ...]``."""
    return product(a.flatten(0, 1), b.flatten(0, 1), dtype, alpha).unflatten(0, a.shape[:2])


def _add(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """``total += alpha a b`` of ``[rows, n, ...]``."""
    accumulate(total.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1), alpha=alpha)
    return total

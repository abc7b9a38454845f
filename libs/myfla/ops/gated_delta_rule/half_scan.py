"""From chunk to chunk in half precision: the state itself stays in float32, each chunk reads it rounded.

States are held value-first, ``[V, K]``: the state a chunk starts from and its keys then stand above each other in one
matrix, and the backward gets the gradients of queries and keys from one product with it.

Where sequences and heads are too few to fill a GPU, long sequences are cut into groups of chunks that are scanned side
by side, from nothing and from the identity at once: that gives, at every chunk, what its group makes of any state. With
the states between the groups known, one product gives the states of all chunks. The backward scans twice: from nothing,
and then, with the gradients between the groups known, for good.

What is done to a state between two products is a ``step``, which a compiler makes one kernel of: three for a chunk.
"""

from typing import Callable, Optional, Tuple

import torch

from myfla.ops.common.half_products import accumulate
from myfla.ops.common.half_tokens import Cut

Scan = Callable[..., torch.Tensor]
Step = Callable[..., None]


def scan_by_steps(
    step: Step,
    delta: torch.Tensor,
    reader: torch.Tensor,
    handed: torch.Tensor,
    whole: torch.Tensor,
    state: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """``delta += reader S;  S <- whole S + handed^T delta`` for one chunk after the other.

    Args:
        step: `half_passes.advance`, perhaps compiled.
        delta: ``[rows, n, C, V]``, what each token would write into an empty memory; completed in place.
        reader, handed: ``[rows, n, C, K]``; the reader with its sign, ``-T rise k``.
        whole: ``[rows, n, 1, 1]``.
        state: ``[rows, V, K]`` before the first chunk; the state after the last one on return.
        kept: ``[rows, n, V, K]``, filled with the rounded states before each chunk.
    """
    # A compiled function wants its arguments at multiples of 16 bytes, or copies them.
    columns = [x.unbind(1) for x in (delta, reader, delta.transpose(2, 3), handed, kept)]
    for d, r, dt, h, low, w in zip(*columns, whole.transpose(0, 1).contiguous().unbind(0)):
        step(state, w, low)
        accumulate(d, r, low.transpose(1, 2))
        accumulate(state, dt, h)
    return state


def scan_back(
    step: Step,
    told: torch.Tensor,
    asked: torch.Tensor,
    handed: torch.Tensor,
    whole: torch.Tensor,
    dstate: torch.Tensor,
    kept: torch.Tensor,
) -> torch.Tensor:
    """The same from the last chunk to the first: ``ddelta += handed dS';  dS = whole dS' + told^T asked``.

    Args:
        step: as `scan_by_steps`.
        told: ``[rows, n, 2C, V]``: the gradient that reaches delta within its chunk, completed in place, above dO.
        asked: ``[rows, n, 2C, K]``, the reader above what the outputs read.
        handed, whole: as `scan_by_steps`.
        dstate: ``[rows, V, K]`` after the last chunk; before the first one on return.
        kept: ``[rows, n, V, K]``, filled with the rounded gradients of the states after each chunk.
    """
    ddelta = told[:, :, : handed.shape[2]]
    columns = [x.unbind(1) for x in (ddelta, handed, told.transpose(2, 3), asked, kept)]
    columns.append(whole.transpose(0, 1).contiguous().unbind(0))
    for d, h, t, a, low, w in reversed(list(zip(*columns))):
        step(dstate, w, low)
        accumulate(d, h, low.transpose(1, 2))
        accumulate(dstate, t, a)
    return dstate


def back_by_steps(
    step: Step, cut: Cut, told: torch.Tensor, asked: torch.Tensor, handed: torch.Tensor, whole: torch.Tensor,
    passed: Optional[torch.Tensor], dstate: torch.Tensor, kept: torch.Tensor,
) -> torch.Tensor:
    """`scan_back` over groups, if there are several.

    Args:
        passed: of `scan_groups`.
        dstate: ``[B * HV, V, K]``, the gradient of the final states.

    Returns:
        ``[rows, V, K]``, the gradient of the state that each group starts from.
    """
    if passed is not None:
        fresh = dstate.new_zeros(cut.rows, *dstate.shape[1:])
        scratch = kept[:, :1].expand(kept.shape)
        fresh = scan_back(step, told.clone(), asked, handed, whole, fresh, scratch)
        dstate = join_groups(cut, fresh, passed, dstate, back=True)[0]
    return scan_back(step, told, asked, handed, whole, dstate, kept)


def scan_groups(
    cut: Cut,
    scan: Scan,
    delta: torch.Tensor,
    reader: torch.Tensor,
    handed: torch.Tensor,
    whole: torch.Tensor,
    state: torch.Tensor,
    kept: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """A scan with the groups of each sequence side by side.

    Args:
        scan: ``scan(delta, reader, handed, whole, state, kept)``, as `scan_by_steps`.
        delta, reader, handed, whole, kept: as there, a row for each group.
        state: ``[B * HV, V, K]`` before the first group.

    Returns:
        the state after the last group, and each group's effect on a state ``S``, which becomes ``S passed`` and what
        the group adds: ``[rows, K, K]``.
    """
    value, key = kept.shape[2:]
    wide = torch.nn.functional.pad(delta, (0, key))
    places = kept.new_empty(tuple(kept.shape[:2]) + (value + key, key))
    effects = state.new_zeros(cut.rows, value + key, key)
    effects[:, value:].diagonal(0, 1, 2).fill_(1)
    effects = scan(wide, reader, handed, whole, effects, places)
    passed = effects[:, value:].contiguous()
    starts, state = join_groups(cut, effects[:, :value], passed, state)
    # What the group made of nothing, and what it makes of the state that it starts from.
    starts = starts.to(delta.dtype).unsqueeze(1).expand(kept.shape).flatten(0, 1)
    wide, places = wide.flatten(0, 1), places.flatten(0, 1)
    delta.copy_(wide[:, :, :value].view(delta.shape))
    accumulate(delta.flatten(0, 1), wide[:, :, value:], starts.transpose(1, 2))
    kept.copy_(places[:, :value].view(kept.shape))
    accumulate(kept.flatten(0, 1), starts, places[:, value:])
    return state, passed


def join_groups(
    cut: Cut, fresh: torch.Tensor, passed: torch.Tensor, state: torch.Tensor, back: bool = False
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The states where the groups start (backward: the gradients where they end), and where all are done.

    Args:
        fresh: ``[rows, V, K]``, what each group makes of nothing.
        passed: ``[rows, K, K]``, its effect on a state.
        state: ``[B * HV, V, K]`` where the first group starts (backward: where the last one ends).

    Returns:
        ``[rows, V, K]`` and ``[B * HV, V, K]``.
    """
    sequences = (cut.batch * cut.heads, cut.groups)
    fresh, passed = fresh.unflatten(0, sequences), passed.unflatten(0, sequences)
    passed = passed.transpose(2, 3) if back else passed
    starts = []
    for i in reversed(range(cut.groups)) if back else range(cut.groups):
        starts.append(state)
        state = torch.baddbmm(fresh[:, i], state, passed[:, i])
    return torch.stack(starts[::-1] if back else starts, dim=1).flatten(0, 1), state

"""From chunk to chunk, in both directions, in two forms that compute the same.

**Steps**: a chunk's tokens meet the incoming state and hand on the next one, in place. The fewest multiplications: best
on CPUs, where products cost what their multiplications cost.

**Transitions** put a chunk's whole effect on the state into one matrix, ``S' = P S + R`` with
``P = whole I - handed^T T (rise K)`` and ``R = handed^T T V``, all chunks at once, so that one product a chunk is
left in the loop. Nearly twice the multiplications, a quarter of the launches: best on GPUs where a wave is small.
"""

from typing import Iterator, NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block


class Factors(NamedTuple):
    """How a block's tokens meet the state; M counts chunks and heads."""

    whole: torch.Tensor  # [M, 1, 1]    decay over the chunk
    meets: torch.Tensor  # [M, 2C, K]   scale rise Q over rise K
    handed: torch.Tensor  # [M, C, K]   beta fall K
    inverse: torch.Tensor  # [M, C, C]  T


def by_transitions(device: torch.device, matrices: int) -> bool:
    """Which form to take.

    Args:
        device: where it runs.
        matrices: sequences times heads, what one step of the loop works on; a hundred of them fill a large GPU.
    """
    return device.type != "cpu" and matrices < 128


def scan(
    block: Block,
    heads: int,
    f: Factors,
    values: torch.Tensor,
    running: torch.Tensor,
    errors: torch.Tensor,
    states: Optional[torch.Tensor] = None,
    fresh: bool = False,
) -> None:
    """Fill errors and states, leave the last states in ``running``.

    Args:
        block: which chunks.
        heads: HV.
        f: the block's factors.
        values: ``[M, C, V]`` V; overwritten by what queries read, ``scale (rise Q) S``.
        running: ``[N * HV, K, V]`` states of all sequences, before and after.
        errors: ``[M, C, V]`` E, written.
        states: ``[M, K, V]`` states before each chunk, written; None if nobody wants them.
        fresh: whether the states before are zero.
    """
    if by_transitions(running.device, running.shape[0]):
        return _scan_by_transitions(block, heads, f, values, running, errors, states)
    queries, keys = f.meets[:, : block.chunk], f.meets[:, block.chunk :]
    steps = waves(block, heads, f.whole, queries, keys, f.handed.transpose(1, 2), f.inverse, values, errors)
    for (whole, query, known, handed, inverse, value, error), (state, after) in zip(
        steps, handovers(block, heads, running, states)
    ):
        if fresh:  # nothing to forget, to erase or to read
            torch.bmm(inverse, value, out=error)
            torch.bmm(handed, error, out=after)
            value.zero_()
            fresh = False
        else:
            torch.bmm(inverse, value.baddbmm_(known, state, alpha=-1), out=error)
            torch.bmm(query, state, out=value)
            torch.mul(state, whole, out=after).baddbmm_(handed, error)


def replay(block: Block, heads: int, f: Factors, errors: torch.Tensor, states: torch.Tensor) -> None:
    """The states before each chunk again, from those before the first and the errors.

    Args:
        block, heads, f, errors: as `scan`.
        states: ``[M, K, V]``; those of the first wave are given, the others written.
    """
    steps = list(waves(block, heads, f.whole, f.handed.transpose(1, 2), errors, states))
    for (whole, handed, error, before), (*_, after) in zip(steps, steps[1:]):
        rows = after.shape[0]
        torch.mul(before[:rows], whole[:rows], out=after).baddbmm_(handed[:rows], error[:rows])


class Gradients(NamedTuple):
    """What `scan_back` finds."""

    out: torch.Tensor  # [M, 2C, V]     given: dO above; written: -dV below
    values: torch.Tensor  # [M, C, V]   dV
    pairs: torch.Tensor  # [M, 2C, C]   ``out E^T``
    meets: torch.Tensor  # [M, 2C, K]   of `Factors.meets`
    handed: torch.Tensor  # [M, C, K]   of `Factors.handed`
    whole: torch.Tensor  # [M, 1, 1]    of `Factors.whole`


def scan_back(
    block: Block,
    heads: int,
    f: Factors,
    states: torch.Tensor,
    errors: torch.Tensor,
    derrors: torch.Tensor,
    running: torch.Tensor,
    d: Gradients,
    room: Optional[torch.Tensor],
    fresh: bool = False,
    last: bool = False,
) -> None:
    """From the last chunk to the first.

    Args:
        block, heads, f: as `scan`.
        states: ``[M, K, V]`` before each chunk.
        errors: ``[M, C, V]`` E.
        derrors: ``[M, C, V]`` what reaches E within the chunk; overwritten.
        running: ``[N * HV, K, V]`` gradients of the states of all sequences, after and before.
        d: where the gradients go.
        room: ``[N * HV, K, V]`` for products of states; None to put them in the place of ``states``.
        fresh: whether the states before were zero; their gradients are then undefined.
        last: whether the gradients of the states after are zero.
    """
    if by_transitions(running.device, running.shape[0]):
        return _scan_back_by_transitions(block, heads, f, states, errors, derrors, running, d)
    running = running[block.rows[0] * heads :]
    gradient, turned = running, running.transpose(1, 2)
    fixed = waves(block, heads, f.whole, f.meets.transpose(1, 2), f.handed, f.inverse.transpose(1, 2))
    held = waves(block, heads, states, states.transpose(1, 2), errors)
    made = waves(block, heads, derrors, d.out, d.out[:, block.chunk :], d.values, d.meets, d.handed, d.whole)
    steps = list(zip(fixed, held, made))
    for step, (given, (state, known, error), written) in reversed(list(enumerate(steps))):
        whole, met, handed, inverse = given
        derror, dout, below, dvalue, dmeets, dhanded, dwhole = written
        if gradient.shape[0] != whole.shape[0]:
            gradient = running[: whole.shape[0]]
            turned = gradient.transpose(1, 2)
        torch.bmm(inverse, derror if last else derror.baddbmm_(handed, gradient), out=dvalue)
        torch.neg(dvalue, out=below)
        first = fresh and step == 0
        if first:
            dmeets.zero_()
        else:
            torch.bmm(dout, known, out=dmeets)
        if last:
            dhanded.zero_()
        else:
            torch.bmm(error, turned, out=dhanded)
        if first or last:
            dwhole.zero_()
        else:
            product = torch.mul(state, gradient, out=state if room is None else room[: whole.shape[0]])
            torch.sum(product, (1, 2), keepdim=True, out=dwhole)
        if last:
            torch.bmm(met, dout, out=gradient)
        elif not first:
            gradient.mul_(whole).baddbmm_(met, dout)
        last = False
    torch.bmm(d.out, errors.transpose(1, 2), out=d.pairs)


def handovers(
    block: Block, heads: int, running: torch.Tensor, kept: Optional[torch.Tensor]
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """For each wave the states it is handed and where it puts those that it hands on.

    Args:
        block, heads: as `scan`.
        running: ``[N * HV, K, V]``, what the first wave is handed and the last hands on.
        kept: ``[M, K, V]``, where what each wave is handed stays; None to work in place in ``running``.
    """
    running = running[block.rows[0] * heads :]
    if kept is None:
        state = running
        for count in block.counts:
            if state.shape[0] != count * heads:
                state = running[: count * heads]
            yield state, state
        return
    places = [place for place, in waves(block, heads, kept)]
    places[0].copy_(running[: places[0].shape[0]])
    for place, following in zip(places, places[1:]):
        rows = following.shape[0]
        if place.shape[0] == rows:
            yield place, following
        else:  # sequences end between these two
            yield place, running[: place.shape[0]]
            following.copy_(running[:rows])
    yield places[-1], running[: places[-1].shape[0]]


def waves(block: Block, heads: int, *tensors: torch.Tensor) -> Iterator[Tuple[torch.Tensor, ...]]:
    """For each wave of a block its part of each tensor ``[M, ...]``."""
    sizes = [count * heads for count in block.counts]
    return zip(*(x.split(sizes) for x in tensors))


def _scan_by_transitions(
    block: Block, heads: int, f: Factors, values: torch.Tensor, running: torch.Tensor, errors: torch.Tensor,
    states: Optional[torch.Tensor],
) -> None:
    """`scan` with one product a chunk."""
    eraser, fresh = _eraser(f), torch.bmm(f.inverse, values)
    stored = torch.bmm(f.handed.transpose(1, 2), fresh)
    states = torch.empty_like(stored) if states is None else states
    steps = waves(block, heads, _transition(f, eraser), stored)
    for (transition, fill), (state, after) in zip(steps, handovers(block, heads, running, states)):
        torch.baddbmm(fill, transition, state, out=after)
    torch.baddbmm(fresh, eraser, states, alpha=-1, out=errors)
    torch.bmm(f.meets[:, : block.chunk], states, out=values)


def _scan_back_by_transitions(
    block: Block, heads: int, f: Factors, states: torch.Tensor, errors: torch.Tensor, derrors: torch.Tensor,
    running: torch.Tensor, d: Gradients,
) -> None:
    """`scan_back` with one product a chunk."""
    turned, below = f.inverse.transpose(1, 2), d.out[:, block.chunk :]
    direct = torch.bmm(turned, derrors)
    torch.neg(direct, out=below)
    stored = torch.bmm(f.meets.transpose(1, 2), d.out)
    transition = _transition(f, _eraser(f)).transpose(1, 2)
    gradients, running = torch.empty_like(states), running[block.rows[0] * heads :]
    for move, fill, gradient in reversed(list(waves(block, heads, transition, stored, gradients))):
        gradient.copy_(running[: gradient.shape[0]])
        torch.baddbmm(fill, move, gradient, out=running[: gradient.shape[0]])
    torch.baddbmm(direct, torch.bmm(turned, f.handed), gradients, out=d.values)
    torch.neg(d.values, out=below)
    torch.bmm(d.out, errors.transpose(1, 2), out=d.pairs)
    torch.bmm(d.out, states.transpose(1, 2), out=d.meets)
    torch.bmm(errors, gradients.transpose(1, 2), out=d.handed)
    torch.sum(gradients.mul_(states), (1, 2), keepdim=True, out=d.whole)


def _eraser(f: Factors) -> torch.Tensor:
    """``T (rise K)``, ``[M, C, K]``."""
    return torch.bmm(f.inverse, f.meets[:, f.handed.shape[1] :])


def _transition(f: Factors, eraser: torch.Tensor) -> torch.Tensor:
    """``P = whole I - handed^T T (rise K)``, ``[M, K, K]``."""
    transition = torch.bmm(f.handed.transpose(1, 2), eraser).neg_()
    transition.diagonal(dim1=1, dim2=2).add_(f.whole[:, 0])
    return transition

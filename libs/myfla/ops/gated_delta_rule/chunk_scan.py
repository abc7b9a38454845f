"""From chunk to chunk, in both directions, in two forms that compute the same.

**Steps**: a chunk meets the incoming state once, its queries and keys in one product, and hands on the next one, in
place. The fewest multiplications: best on CPUs, where products cost what their multiplications cost.

**Transitions** put a chunk's whole effect on the state into one matrix, ``S' = P S + R`` with
``P = whole I - handed^T T (rise K)`` and ``R = handed^T T V``, all chunks at once, so that one product a chunk is
left in the loop. Nearly twice the multiplications, a quarter of the launches: best on GPUs where a wave is small.
"""

from typing import Iterator, NamedTuple, Tuple

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
    reads: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """Fill reads and errors, leave the last states in ``running``.

    Args:
        block: which chunks.
        heads: HV.
        f: the block's factors.
        values: ``[M, C, V]`` V; overwritten.
        running: ``[N * HV, K, V]`` states of all sequences, before and after.
        reads: ``[M, 2C, V]`` products of ``f.meets`` and the incoming states, written.
        errors: ``[M, C, V]`` E, written.
    """
    if by_transitions(running.device, running.shape[0]):
        return _scan_by_transitions(block, heads, f, values, running, reads, errors)
    running, known = running[block.rows[0] * heads :], reads[:, block.chunk :]
    steps = waves(block, heads, f.whole, f.meets, f.handed.transpose(1, 2), f.inverse, values, reads, known, errors)
    for whole, meets, handed, inverse, value, read, foreseen, error in steps:
        state = running[: whole.shape[0]]
        torch.bmm(meets, state, out=read)
        torch.bmm(inverse, value.sub_(foreseen), out=error)
        state.mul_(whole).baddbmm_(handed, error)


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
) -> None:
    """From the last chunk to the first.

    Args:
        block, heads, f: as `scan`.
        states: ``[M, K, V]`` before each chunk; overwritten.
        errors: ``[M, C, V]`` E.
        derrors: ``[M, C, V]`` what reaches E within the chunk; overwritten.
        running: ``[N * HV, K, V]`` gradients of the states of all sequences, after and before.
        d: where the gradients go.
    """
    if by_transitions(running.device, running.shape[0]):
        return _scan_back_by_transitions(block, heads, f, states, errors, derrors, running, d)
    running = running[block.rows[0] * heads :]
    fixed = waves(block, heads, f.whole, f.meets.transpose(1, 2), f.handed, f.inverse.transpose(1, 2), states, errors)
    made = waves(block, heads, derrors, d.out, d.out[:, block.chunk :], *d[1:])
    for given, written in reversed(list(zip(fixed, made))):
        whole, meets, handed, inverse, state, error = given
        derror, dout, below, dvalue, dmeets, dhanded, dwhole = written
        gradient = running[: whole.shape[0]]
        torch.bmm(inverse, derror.baddbmm_(handed, gradient), out=dvalue)
        torch.neg(dvalue, out=below)
        torch.bmm(dout, state.transpose(1, 2), out=dmeets)
        torch.bmm(error, gradient.transpose(1, 2), out=dhanded)
        torch.sum(state.mul_(gradient), (1, 2), keepdim=True, out=dwhole)
        gradient.mul_(whole).baddbmm_(meets, dout)


def waves(block: Block, heads: int, *tensors: torch.Tensor) -> Iterator[Tuple[torch.Tensor, ...]]:
    """For each wave of a block its part of each tensor ``[M, ...]``."""
    sizes = [count * heads for count in block.counts]
    return zip(*(x.split(sizes) for x in tensors))


def _scan_by_transitions(
    block: Block, heads: int, f: Factors, values: torch.Tensor, running: torch.Tensor, reads: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """`scan` with one product a chunk."""
    eraser, fresh = torch.bmm(f.inverse, f.meets[:, block.chunk :]), torch.bmm(f.inverse, values)
    stored = torch.bmm(f.handed.transpose(1, 2), fresh)
    states, running = torch.empty_like(stored), running[block.rows[0] * heads :]
    steps = list(waves(block, heads, _transition(f, eraser), stored, states))
    steps[0][2].copy_(running[: steps[0][2].shape[0]])
    for i, (transition, fill, state) in enumerate(steps):
        rows = state.shape[0]
        after = steps[i + 1][2] if i + 1 < len(steps) else state[:0]
        if after.shape[0] == rows:
            torch.baddbmm(fill, transition, state, out=after)
        else:  # some sequences end here
            torch.baddbmm(fill, transition, state, out=running[:rows])
            after.copy_(running[: after.shape[0]])
    torch.bmm(f.meets, states, out=reads)
    torch.baddbmm(fresh, eraser, states, alpha=-1, out=errors)


def _scan_back_by_transitions(
    block: Block, heads: int, f: Factors, states: torch.Tensor, errors: torch.Tensor, derrors: torch.Tensor,
    running: torch.Tensor, d: Gradients,
) -> None:
    """`scan_back` with one product a chunk."""
    turned, below = f.inverse.transpose(1, 2), d.out[:, block.chunk :]
    direct = torch.bmm(turned, derrors)
    torch.neg(direct, out=below)
    stored = torch.bmm(f.meets.transpose(1, 2), d.out)
    transition = _transition(f, torch.bmm(f.inverse, f.meets[:, block.chunk :])).transpose(1, 2)
    gradients, running = torch.empty_like(states), running[block.rows[0] * heads :]
    for move, fill, gradient in reversed(list(waves(block, heads, transition, stored, gradients))):
        gradient.copy_(running[: gradient.shape[0]])
        torch.baddbmm(fill, move, gradient, out=running[: gradient.shape[0]])
    torch.baddbmm(direct, torch.bmm(turned, f.handed), gradients, out=d.values)
    torch.neg(d.values, out=below)
    torch.bmm(d.out, states.transpose(1, 2), out=d.meets)
    torch.bmm(errors, gradients.transpose(1, 2), out=d.handed)
    torch.sum(states.mul_(gradients), (1, 2), keepdim=True, out=d.whole)


def _transition(f: Factors, eraser: torch.Tensor) -> torch.Tensor:
    """``P = whole I - handed^T T (rise K)``, ``[M, K, K]``."""
    transition = torch.bmm(f.handed.transpose(1, 2), eraser).neg_()
    transition.diagonal(dim1=1, dim2=2).add_(f.whole[:, 0])
    return transition

"""From chunk to chunk, in both directions, in two forms that compute the same.

**Steps** keep the fewest multiplications: two small products for each chunk. Best on CPUs.

**Transitions** put a chunk's whole effect on the state into one matrix, ``S' = P S + R`` with
``P = diag(whole) + hand_b^T reader``, all chunks at once, so that one product a chunk is left in the loop. More
multiplications, a third of the launches: best on GPUs.
"""

from typing import Callable, NamedTuple

import torch

from myfla.ops.common.layout import Block


class Way(NamedTuple):
    """How a block's chunks meet the state: forward as named, backward with the roles turned round."""

    whole: torch.Tensor  # [M, K, 1]   decay over the chunk
    reader: torch.Tensor  # [M, C, K]   T a'; backward T^T b^
    giver: torch.Tensor  # [M, C, K]   b^; backward a'
    given: torch.Tensor  # [M, K, V]   k^^T v; backward q'^T do


def by_transitions(device: torch.device) -> bool:
    """Which form a device gets."""
    return device.type != "cpu"


def scan(
    block: Block, heads: int, way: Way, running: torch.Tensor, states: torch.Tensor, read: torch.Tensor
) -> None:
    """Fill the states before each chunk and add what they give to ``read``; leave the last states in ``running``.

    Args:
        block: which chunks.
        heads: H.
        way: the block's matrices.
        running: ``[N * H, K, V]`` states of all sequences, before and after.
        states: ``[M, K, V]``, written.
        read: ``[M, C, V]``, what each token reads of its own chunk; on return of everything.
    """
    first, sizes = block.rows[0] * heads, [count * heads for count in block.counts]
    moves = _moves(way, read, sizes)
    places, state = states.split(sizes), None
    for i, rows in enumerate(sizes):
        if state is None:
            state = places[i].copy_(running[first : first + rows])
        follows = i + 1 < len(sizes) and sizes[i + 1] == rows
        target = places[i + 1] if follows else running[first : first + rows]
        moves(i, state, target)
        state = target if follows else None
    if by_transitions(states.device):
        read.baddbmm_(way.reader, states)


def scan_back(
    block: Block, heads: int, way: Way, running: torch.Tensor, dstates: torch.Tensor, inner: torch.Tensor
) -> None:
    """The same from the last chunk to the first.

    Args:
        block, heads, way: as `scan`.
        running: ``[N * H, K, V]`` gradients of the states of all sequences, after and before.
        dstates: ``[M, K, V]`` gradients of the states after each chunk, written.
        inner: ``[M, C, V]``, what reaches u of its own chunk through T; on return all of it.
    """
    first, sizes = block.rows[0] * heads, [count * heads for count in block.counts]
    moves = _moves(way, inner, sizes)
    places, filled = dstates.split(sizes), 0
    for i in reversed(range(len(sizes))):
        gradient, rows = places[i], sizes[i]
        if filled < rows:
            gradient[filled:].copy_(running[first + filled : first + rows])
        moves(i, gradient, places[i - 1][:rows] if i else running[first : first + rows])
        filled = rows
    if by_transitions(dstates.device):
        inner.baddbmm_(way.reader, dstates)


def _moves(way: Way, read: torch.Tensor, sizes: list) -> Callable[[int, torch.Tensor, torch.Tensor], None]:
    """A function that takes the state over the i-th chunk; by steps it also completes ``read`` there."""
    givers = way.giver.transpose(1, 2)
    if by_transitions(read.device):
        transition = torch.bmm(givers, way.reader)
        transition.diagonal(0, 1, 2).add_(way.whole.squeeze(-1))
        fixed = torch.baddbmm(way.given, givers, read)
        transitions, fixed_parts = transition.split(sizes), fixed.split(sizes)

        def move(i: int, state: torch.Tensor, target: torch.Tensor) -> None:
            torch.baddbmm(fixed_parts[i], transitions[i], state, out=target)

        return move
    whole, readers, giver_parts, given, reads = (
        x.split(sizes) for x in (way.whole, way.reader, givers, way.given, read)
    )

    def step(i: int, state: torch.Tensor, target: torch.Tensor) -> None:
        own = reads[i].baddbmm_(readers[i], state)
        torch.addcmul(given[i], state, whole[i], out=target)
        target.baddbmm_(giver_parts[i], own)

    return step

"""From chunk to chunk, in both directions, in two forms that compute the same.

**Steps** keep the fewest operations: three small products for each chunk. Best where products cost what their
multiplications cost, on CPUs.

**Transitions** put a chunk's whole effect on the state into one matrix, ``S' = P S + R`` with
``P = whole I - handed^T T erased`` and ``R = handed^T T written``, all chunks at once, so that one product a chunk is
left in the loop. Nearly twice the multiplications, a quarter of the launches: best on GPUs where a wave is small.
"""

from typing import NamedTuple

import torch

from myfla.ops.common.layout import Block


class Factors(NamedTuple):
    """How a block's tokens meet the state; M counts chunks and heads."""

    whole: torch.Tensor  # [M, 1, 1]    decay over the chunk
    erased: torch.Tensor  # [M, C, K]   beta rise K
    handed: torch.Tensor  # [M, C, K]   fall K
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
    written: torch.Tensor,
    running: torch.Tensor,
    states: torch.Tensor,
    delta: torch.Tensor,
) -> None:
    """Fill the states before each chunk and delta, leave the last states in ``running``.

    Args:
        block: which chunks.
        heads: HV.
        f: the block's factors.
        written: ``[M, C, V]`` beta V.
        running: ``[N * HV, K, V]`` states of all sequences, before and after.
        states: ``[M, K, V]``, written.
        delta: ``[M, C, V]``, written.
    """
    whole_chunk = by_transitions(states.device, running.shape[0])
    if whole_chunk:
        reads, fresh = torch.bmm(f.inverse, f.erased), torch.bmm(f.inverse, written)
        transition, stored = _transition(f, reads), torch.bmm(f.handed.transpose(1, 2), fresh)
    first, waves = block.rows[0] * heads, block.waves(heads)
    state = None
    for i, wave in enumerate(waves):
        rows = wave.stop - wave.start
        if state is None:
            state = states[wave].copy_(running[first : first + rows])
        follows = i + 1 < len(waves) and block.counts[i + 1] == block.counts[i]
        target = states[waves[i + 1]] if follows else running[first : first + rows]
        if whole_chunk:
            torch.baddbmm(stored[wave], transition[wave], state, out=target)
        else:
            right = torch.baddbmm(written[wave], f.erased[wave], state, alpha=-1)
            torch.bmm(f.inverse[wave], right, out=delta[wave])
            torch.mul(state, f.whole[wave], out=target)
            target.baddbmm_(f.handed[wave].transpose(1, 2), delta[wave])
        state = target if follows else None
    if whole_chunk:
        torch.baddbmm(fresh, reads, states, alpha=-1, out=delta)


def scan_back(
    block: Block,
    heads: int,
    f: Factors,
    reader: torch.Tensor,
    do: torch.Tensor,
    ddelta: torch.Tensor,
    running: torch.Tensor,
    dstates: torch.Tensor,
    eta: torch.Tensor,
) -> None:
    """From the last chunk to the first: fill the gradients of the states after each chunk, and eta.

    Args:
        block, heads, f: as `scan`.
        reader: ``[M, C, K]`` scale rise Q.
        do: ``[M, C, V]`` gradient of the outputs.
        ddelta: ``[M, C, V]`` what reaches delta within the chunk.
        running: ``[N * HV, K, V]`` gradients of the states of all sequences, after and before.
        dstates: ``[M, K, V]``, written.
        eta: ``[M, C, V]``, written.
    """
    whole_chunk = by_transitions(dstates.device, running.shape[0])
    turned = f.inverse.transpose(1, 2)
    if whole_chunk:
        direct = torch.bmm(turned, ddelta)
        transition = _transition(f, torch.bmm(f.inverse, f.erased))
        stored = torch.bmm(reader.transpose(1, 2), do).baddbmm_(f.erased.transpose(1, 2), direct, alpha=-1)
    first, waves = block.rows[0] * heads, block.waves(heads)
    filled = 0
    for i in reversed(range(len(waves))):
        wave = waves[i]
        rows = wave.stop - wave.start
        gradient = dstates[wave]
        if filled < rows:
            gradient[filled:].copy_(running[first + filled : first + rows])
        target = dstates[waves[i - 1]][:rows] if i else running[first : first + rows]
        if whole_chunk:
            torch.baddbmm(stored[wave], transition[wave].transpose(1, 2), gradient, out=target)
        else:
            right = torch.baddbmm(ddelta[wave], f.handed[wave], gradient)
            torch.bmm(turned[wave], right, out=eta[wave])
            torch.mul(gradient, f.whole[wave], out=target)
            target.baddbmm_(reader[wave].transpose(1, 2), do[wave])
            target.baddbmm_(f.erased[wave].transpose(1, 2), eta[wave], alpha=-1)
        filled = rows
    if whole_chunk:
        torch.baddbmm(direct, torch.bmm(turned, f.handed), dstates, out=eta)


def _transition(f: Factors, reads: torch.Tensor) -> torch.Tensor:
    """``P = whole I - handed^T reads``, ``[M, K, K]``."""
    transition = torch.bmm(f.handed.transpose(1, 2), reads).neg_()
    transition.diagonal(dim1=1, dim2=2).add_(f.whole[:, 0])
    return transition

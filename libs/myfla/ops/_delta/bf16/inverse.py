"""The inverse of unit lower triangular matrices in few large batches, for a GPU; all in float32.

`chunk.triangular` inverts in place instead, which takes a third to two thirds of the time on a CPU.

Blocks of 16 on the diagonal are solved; two neighbours ``A`` and ``D`` with the block ``L`` between them make one of
twice the size, ``[A^-1, 0; -D^-1 L A^-1, D^-1]``. Elements above the diagonal are not stored in between.
"""

from typing import Callable, List, Tuple

import torch

from myfla.ops._delta.bf16.products import product
from myfla.ops._delta.bf16.static import mark_static
from myfla.utils.tracing import compiling

LEAF = 16


def invert_unit_lower(lower: torch.Tensor) -> torch.Tensor:
    """``(I + strictly_lower(lower))^-1``, as `chunk.triangular.unit_lower_inverse`: leaves solved, then doubled.

    Args:
        lower: ``[M, C, C]``, C a power of two times 16; the diagonal and what is above it are not read.

    Example:
        >>> invert_unit_lower(torch.full((1, 16, 16), 2.0))[0, 1, 0].item()
        -2.0
    """
    return join_blocks(*invert_blocks(*split_blocks(lower)))


def split_blocks(lower: torch.Tensor) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """The blocks that `invert_blocks` reads of ``lower [M, C, C]``: 16 wide on the diagonal, and those between blocks.

    Returns:
        ``[M, C / 16, 16, 16]``, and for s = 16, 32, ... below C the ``[M, C / 2s, s, s]``.
    """
    leaves, corners = view_blocks(lower)
    return leaves.contiguous(), [x.contiguous() for x in corners]


def view_blocks(lower: torch.Tensor) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """`split_blocks` without a copy."""
    count, size = lower.shape[:2]
    leaves = lower.view(count, size // LEAF, LEAF, size // LEAF, LEAF).diagonal(0, 1, 3)
    corners, step = [], LEAF
    while step < size:
        pairs = size // (2 * step)
        below = lower.view(count, pairs, 2, step, pairs, 2, step)[:, :, 1, :, :, 0]
        corners.append(below.diagonal(0, 1, 3).permute(0, 3, 1, 2))
        step *= 2
    return leaves.permute(0, 3, 1, 2), corners


def row_blocks(x: torch.Tensor) -> List[torch.Tensor]:
    """Numbers for the rows of ``lower``, ``[M, C, 1]``, split like the rows of the blocks of `split_blocks`."""
    count, size = x.shape[:2]
    blocks = [x.reshape(count, size // LEAF, LEAF, 1)]
    while LEAF << len(blocks) <= size:
        blocks.append(x.reshape(count, -1, 2, LEAF << (len(blocks) - 1), 1)[:, :, 1])
    return blocks


def column_blocks(x: torch.Tensor) -> List[torch.Tensor]:
    """The same for numbers of the columns, also ``[M, C, 1]``."""
    count, size = x.shape[:2]
    blocks = [x.reshape(count, size // LEAF, 1, LEAF)]
    while LEAF << len(blocks) <= size:
        blocks.append(x.reshape(count, -1, 2, 1, LEAF << (len(blocks) - 1))[:, :, 0])
    return blocks


def invert_leaves(leaves: torch.Tensor) -> torch.Tensor:
    """``(I + strictly_lower(leaves))^-1`` of ``[M, P, 16, 16]``."""
    mark_static(leaves)
    if compiling():  # row after row, all in one kernel
        rows: List[torch.Tensor] = []
        columns = torch.arange(LEAF, device=leaves.device)
        for i in range(LEAF):
            row = (columns == i).to(leaves.dtype).expand(leaves.shape[:3])
            for j, known in enumerate(rows):
                row = row - leaves[:, :, i, j, None] * known
            rows.append(row)
        return torch.stack(rows, dim=2)
    flat = leaves.flatten(0, 1)
    one = torch.eye(LEAF, dtype=leaves.dtype, device=leaves.device).expand(flat.shape)
    return torch.linalg.solve_triangular(flat, one, upper=False, unitriangular=True).contiguous().view(leaves.shape)


def invert_blocks(
    leaves: torch.Tensor, corners: List[torch.Tensor], run: Callable[[Callable], Callable] = lambda step: step
) -> Tuple[torch.Tensor, torch.Tensor]:
    """All steps except the last: the input of `join_blocks`.

    Args:
        leaves, corners: of `split_blocks`.
        run: applied to `invert_leaves` and `join_blocks` before they are called, to compile them.

    Returns:
        inverses of the two halves ``[M, 2, C / 2, C / 2]`` and the block below ``[M, C / 2, C / 2]``; with one leaf,
        its inverse ``[M, 1, C, C]`` and an empty block.
    """
    blocks, corner, count = run(invert_leaves)(leaves), leaves.new_empty(0), leaves.shape[0]
    for lower in corners:
        if corner.numel():
            blocks = run(join_blocks)(blocks, corner)
        step = lower.shape[2]
        top, bottom = blocks.view(-1, 2, step, step).unbind(1)
        lower = lower.reshape(-1, step, step)
        if compiling():
            corner = torch.bmm(bottom, torch.bmm(lower, top)).neg()
        else:
            corner = product(bottom, product(lower, top), alpha=-1.0)
        blocks = blocks.view(count, -1, step, step)
    return blocks, corner


def join_inverse(blocks: torch.Tensor, corner: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The last step: the inverse ``[M, C, C]`` in ``dtype``."""
    return join_blocks(blocks, corner).to(dtype)


def join_blocks(blocks: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """Join neighbours ``[M, 2P, s, s]`` and the block below the first of each two, ``[M P, s, s]``, to ``[M P, 2s,
    2s]``."""
    mark_static(blocks, corner)
    step = blocks.shape[2]
    if not corner.numel():
        return blocks.view(-1, step, step)
    top, bottom = blocks.view(-1, 2, step, step).unbind(1)
    if compiling():  # which writes every number once
        upper = torch.cat((top, torch.zeros_like(top)), dim=2)
        return torch.cat((upper, torch.cat((corner, bottom), dim=2)), dim=1)
    whole = blocks.new_zeros(top.shape[0], 2 * step, 2 * step)
    whole[:, :step, :step] = top
    whole[:, step:, step:] = bottom
    whole[:, step:, :step] = corner
    return whole

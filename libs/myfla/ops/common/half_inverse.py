"""The inverse of unit lower triangular matrices in few large batches, as a GPU wants them; float32 throughout."""

import torch

from myfla.ops.common.half_products import product

LEAF = 16


def invert_unit_lower(lower: torch.Tensor) -> torch.Tensor:
    """``(I + strictly_lower(lower))^-1``, as `triangular.unit_lower_inverse` does it: leaves solved, then doubled.

    Args:
        lower: ``[M, C, C]`` contiguous, C a power of two times 16; the diagonal and what is above it are not read.

    Example:
        >>> invert_unit_lower(torch.full((1, 16, 16), 2.0))[0, 1, 0].item()
        -2.0
    """
    count, size = lower.shape[:2]
    one = torch.eye(LEAF, dtype=lower.dtype, device=lower.device).expand(count * size // LEAF, LEAF, LEAF)
    leaves = diagonal_blocks(lower).reshape(-1, LEAF, LEAF)
    leaves = torch.linalg.solve_triangular(leaves, one, upper=False, unitriangular=True)
    if size == LEAF:
        return leaves
    inverse = torch.zeros_like(lower)
    diagonal_blocks(inverse).copy_(leaves.view(count, -1, LEAF, LEAF))
    step = LEAF
    while step < size:
        for start in range(0, size, 2 * step):
            top, bottom = slice(start, start + step), slice(start + step, start + 2 * step)
            corner = product(lower[:, bottom, top], inverse[:, top, top])
            product(inverse[:, bottom, bottom], corner, alpha=-1.0, out=inverse[:, bottom, top])
        step *= 2
    return inverse


def diagonal_blocks(matrix: torch.Tensor) -> torch.Tensor:
    """View ``[M, C / 16, 16, 16]`` of the diagonal blocks of a contiguous ``[M, C, C]``."""
    blocks = matrix.shape[1] // LEAF
    return matrix.view(-1, blocks, LEAF, blocks, LEAF).diagonal(0, 1, 3).permute(0, 3, 1, 2)

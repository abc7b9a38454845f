"""The triangular system of a chunk: products of keys with keys, and the inverse of the unit lower triangular matrix.

On a GPU with bfloat16 the inverse is `bf16.inverse`: the same blocks, stored separately so that a compiler writes every
number once. On a CPU that takes 1.6 to 3 times as long as the in-place form of this module.
"""

from typing import Optional

import torch

from myfla.ops._delta.chunk.strong_decays import StrongDecays

LEAF = 16
"""Blocks of this size are solved by substitution; larger ones are put together from them."""


def unit_lower_inverse(lower: torch.Tensor, out: Optional[torch.Tensor] = None) -> torch.Tensor:
    """``(I + strictly_lower(lower))^-1``.

    Diagonal blocks of `LEAF` rows are solved by substitution; then neighbours are joined, doubling the size:
    ``[[A, 0], [X, B]]^-1 = [[A', 0], [-B' X A', B']]``. A product of powers would need fewer steps, but loses
    four digits where keys are alike.

    Args:
        lower: ``[M, C, C]``, float32 or float64; the diagonal and everything above it are not read.
        out: where the result goes; a new tensor by default.

    Returns:
        ``[M, C, C]`` of the same dtype, zero above the diagonal, one on it.

    Example:
        >>> unit_lower_inverse(torch.tensor([[[0.0, 0.0], [3.0, 0.0]]]))
        tensor([[[ 1.,  0.],
                 [-3.,  1.]]])
    """
    size = lower.shape[1]
    if size <= LEAF:
        found = _substitute(lower.contiguous())  # with a view the solver copies, which takes half as long again
        return found if out is None else out.copy_(found)
    inverse = torch.zeros_like(lower) if out is None else out.zero_()
    whole = size - size % LEAF
    _diagonal_blocks(inverse, whole).copy_(_substitute(_diagonal_blocks(lower, whole).contiguous()))
    if whole < size:
        inverse[:, whole:, whole:] = _substitute(lower[:, whole:, whole:])
    step = LEAF
    while step < size:
        for start in range(0, size - step, 2 * step):
            top, bottom = slice(start, start + step), slice(start + step, min(start + 2 * step, size))
            corner = torch.bmm(lower[:, bottom, top], inverse[:, top, top])
            # Not straight into the strided result: such a batch of products runs one by one.
            inverse[:, bottom, top] = torch.bmm(inverse[:, bottom, bottom], corner).neg_()
        step *= 2
    return inverse


def _diagonal_blocks(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """View of the `LEAF`-sized diagonal blocks of the leading ``size`` rows, ``[M, size / LEAF, LEAF, LEAF]``."""
    batch, row, column = matrix.stride()
    shape = (matrix.shape[0], size // LEAF, LEAF, LEAF)
    return matrix.as_strided(shape, (batch, LEAF * (row + column), row, column), matrix.storage_offset())


def _substitute(lower: torch.Tensor) -> torch.Tensor:
    """The inverse of small blocks ``[M, ...]``, row by row."""
    size = lower.shape[-1]
    one = torch.eye(size, dtype=lower.dtype, device=lower.device)
    if lower.device.type != "mps":
        # From the right: on a CPU rows then need no transposed copies, and that is half of the time.
        # The solver uses both sides in this layout without copies.
        found = torch.empty_like(lower).copy_(one).transpose(-2, -1)
        return torch.linalg.solve_triangular(lower, found, upper=False, left=False, unitriangular=True, out=found)
    return _row_by_row(lower)


def _row_by_row(lower: torch.Tensor) -> torch.Tensor:
    """`_substitute` of ``[..., C, C]`` in operations that every runtime has."""
    size = lower.shape[-1]
    one = torch.eye(size, dtype=lower.dtype, device=lower.device)
    rows = one[:1].expand((*lower.shape[:-2], 1, size))
    for i in range(1, size):
        rows = torch.cat([rows, one[i : i + 1] - lower[..., i : i + 1, :i] @ rows], dim=-2)
    return rows


def substitute(lower: torch.Tensor) -> torch.Tensor:
    """`unit_lower_inverse` of ``[..., C, C]`` without LAPACK and without writing in place, for exported graphs.

    Args:
        lower: any leading axes; zero on the diagonal and above it.

    Example:
        >>> substitute(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
        tensor([[ 1.,  0.],
                [-3.,  1.]])
    """
    size = lower.shape[-1]
    if size <= LEAF:
        return _row_by_row(lower)
    half = size // 2
    top, bottom = substitute(lower[..., :half, :half]), substitute(lower[..., half:, half:])
    corner = -(bottom @ (lower[..., half:, :half] @ top))
    above = torch.cat([top, torch.zeros_like(top[..., :1]).expand((*top.shape[:-1], size - half))], dim=-1)
    return torch.cat([above, torch.cat([corner, bottom], dim=-1)], dim=-2)


def refine_system(
    system: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: torch.Tensor,
    strong: Optional[StrongDecays] = None,
) -> None:
    """Compute the products of keys with keys again, summed in float64, in the rows from the first beta above 1 on.

    There a transition may preserve lengths instead of reducing them (eigenvalue -1), and products of similar keys have
    similar rounding errors: over a thousand tokens they add up to 2e-4, against 1e-5 in the token loop. No bit of a
    token's result depends on a later beta.

    Args:
        system: ``[M, C, C]``, written on a CPU in float32, unchanged otherwise.
        left, right: ``[M, C, K]`` its factors.
        beta: ``[M, C, 1]``.
        strong: the matrices whose rows from the first strong decay on are not changed.
    """
    if system.dtype is not torch.float32 or system.device.type != "cpu" or not bool((beta > 1).any()):
        return
    late = (beta > 1).cumsum(1) > 0
    if strong is not None:
        late[strong.matrices] &= ~strong.late.unsqueeze(2)
    at = late.flatten(1).any(1).nonzero(as_tuple=True)[0]
    rows, columns = (x.index_select(0, at).double() for x in (left, right))
    fine = torch.bmm(rows, columns.transpose(1, 2)).to(system.dtype)
    system.index_copy_(0, at, torch.where(late.index_select(0, at), fine, system.index_select(0, at)))

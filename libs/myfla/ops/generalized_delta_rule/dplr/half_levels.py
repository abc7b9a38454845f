"""How the products of two tokens in a chunk are split so that no factor of a decay leaves the range of its format.

With ``c_t`` the log decay summed from the chunk's start and ``before_t`` the same without token t, two tokens s < t
meet with ``exp(c_t - c_s)``, per channel. Inside a **block** of a few tokens both factors refer to the block's middle,
and a step counts as at least `Levels.floor`, so that neither overflows. Tokens of different blocks meet at the boundary
of exactly one pair of neighbouring pieces of one, two, four ... blocks: s in the first, t in the second. With that
boundary as reference both factors are decays of real steps, at most one.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.utils.tracing import compiling

RANGE = {torch.float32: 64.0, torch.float64: 640.0}
"""Largest log of a factor inside a block."""
BLOCK = 8
"""Tokens in a block where nothing is known of the decays. A step then counts as -16 at least, 1e-7: what float32 rounds
off."""


class Meeting(NamedTuple):
    """Where tokens meet: inside every block, or at the boundary of two pieces."""

    size: int  # n, tokens of a block or of a piece
    inside: bool

    def places(self, chunk: int) -> int:
        """How many there are in a chunk."""
        return chunk // (self.size if self.inside else 2 * self.size)

    def sides(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Tokens ``[..., C, K]`` that are read and that read, ``[..., places, n, K]`` each; the same inside blocks."""
        if self.inside:
            x = x.unflatten(-2, (-1, self.size))
            return x, x
        first, second = x.unflatten(-2, (-1, 2, self.size)).unbind(-3)
        return first, second

    def decays(self, c: torch.Tensor, rises: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Of tokens that are read, to the reference: ``[M, 1, places, n, K]``; of a and q, from it: 2 for 1.

        Args:
            c: ``[M, C, K]``.
            rises: ``[M, 2, C, K]``, ``before`` and ``c``.
        """
        earlier, later = self.sides(c)[0].unsqueeze(1), self.sides(rises)[1]
        at = self.size // 2 if self.inside else self.size
        reference = earlier[:, :, :, at - 1 : at]
        return (reference - earlier).exp(), (later - reference).exp()

    def added(self, total: torch.Tensor, side: int, x: torch.Tensor) -> torch.Tensor:
        """``total [..., C, K]`` with ``x [..., places, n, K]`` added to one of its `sides`; eagerly in place."""
        if not compiling():
            self.sides(total)[side].add_(x)
            return total
        if not self.inside:
            nothing = torch.zeros_like(x)
            x = torch.stack((nothing, x) if side else (x, nothing), dim=-3).flatten(-4, -3)
        return total + x.flatten(-3, -2)

    def squares(self, grid: torch.Tensor) -> torch.Tensor:
        """Rows of those that read, columns of those that are read: of ``[M, 2, C, 2, C]`` a view
        ``[M, places, 2, n, 2, n]``."""
        m, _, chunk = grid.shape[:3]
        count = self.places(chunk)
        if self.inside:
            cut = grid.view(m, 2, count, self.size, 2, count, self.size)
        else:
            cut = grid.view(m, 2, count, 2, self.size, 2, count, 2, self.size)[:, :, :, 1, :, :, :, 0]
        return cut.diagonal(0, 2, 5).permute(0, 5, 1, 2, 3, 4)


class Levels(NamedTuple):
    """The split of a chunk."""

    chunk: int
    block: int
    floor: float  # the least a step's log decay counts as

    def meetings(self) -> List[Meeting]:
        """All pairs of tokens, each once: inside blocks, then at the boundaries of ever larger pieces."""
        found, size = [Meeting(self.block, True)], self.block
        while size < self.chunk:
            found.append(Meeting(size, False))
            size *= 2
        return found


def choose_levels(chunk: int, dtype: torch.dtype, lower_bound: Optional[float] = None) -> Levels:
    """The largest blocks that log decays from ``lower_bound`` on allow; `BLOCK` tokens if nothing is promised.

    Args:
        chunk: tokens in a chunk, a power of two, at least `BLOCK`.
        dtype: of the sums.
        lower_bound: no step's log decay is below.

    Example:
        >>> choose_levels(64, torch.float32)
        Levels(chunk=64, block=8, floor=-16.0)
        >>> choose_levels(64, torch.float32, -0.6065)
        Levels(chunk=64, block=64, floor=-2.0)
    """
    block, most = BLOCK, RANGE[dtype]
    while lower_bound is not None and block < chunk and -lower_bound * block <= most:
        block *= 2
    return Levels(chunk, block, -most / (block // 2))


def keep_seen(squares: torch.Tensor) -> torch.Tensor:
    """``[..., 2, n, 2, n]`` with zeros for what lies in the future: a sees s < t, q sees s <= t."""
    ones = torch.ones(squares.shape[-1], squares.shape[-1], dtype=torch.bool, device=squares.device)
    keep = torch.stack((ones.tril(-1), ones.tril())).unsqueeze(2)
    return torch.where(keep, squares, squares.new_zeros(()))

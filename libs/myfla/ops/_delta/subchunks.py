"""How the products of two tokens in a chunk are split so that no factor of a decay leaves the range of its dtype.

With ``c_t`` the log decay summed from the chunk's start, the product of tokens s < t has the factor ``exp(c_t - c_s)``,
per channel (less t's own step where the reader sees the state before it). Inside a **block** of a few tokens both
factors refer to the block's middle, and a step's log decay counts as at least a lower limit, so that neither overflows.
Tokens of different blocks lie on either side of the boundary of exactly one pair of neighbouring sub-chunks of one,
two, four ... blocks: s in the first, t in the second. With that boundary as reference both factors are decays of real
steps, at most one.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch

from myfla.utils.tracing import compiling

RANGE = {torch.float32: 64.0, torch.float64: 640.0}
"""Largest log of a factor inside a block."""
BLOCK = 8
"""Tokens in a block where nothing is known of the decays. A step's log decay then counts as at least -16, a factor of
1e-7, which float32 rounds off."""


class SubChunkPair(NamedTuple):
    """Pairs of tokens: inside every block, or on either side of the boundary of two sub-chunks."""

    size: int  # n, tokens of a block or of a sub-chunk
    inside: bool

    def places(self, chunk: int) -> int:
        """The number of these places in a chunk."""
        return chunk // (self.size if self.inside else 2 * self.size)

    def sides(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Tokens ``[..., C, K]`` that are read and that read, ``[..., places, n, K]`` each; the same inside blocks."""
        if self.inside:
            x = x.unflatten(-2, (-1, self.size))
            return x, x
        first, second = x.unflatten(-2, (-1, 2, self.size)).unbind(-3)
        return first, second

    def decays(self, c: torch.Tensor, from_start: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Of tokens that are read, to the reference: ``[M, 1, places, n, K]``; of the two that read, from it: 2 for 1.

        Args:
            c: ``[M, C, K]``.
            from_start: ``[M, 2, C, K]``, log decay from the chunk's start of both that read.
        """
        to_reference, from_reference = self.log_decays(c, from_start)
        return to_reference.exp(), from_reference.exp()

    def log_decays(self, c: torch.Tensor, from_start: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """The logarithms of `decays`, of any number of kinds that read."""
        earlier, later = self.sides(c)[0].unsqueeze(1), self.sides(from_start)[1]
        at = self.size // 2 if self.inside else self.size
        reference = earlier[:, :, :, at - 1 : at]
        return reference - earlier, later - reference

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
        """Rows of the R kinds that read, columns of the W that are read: of ``[M, R, C, W, C]`` a view
        ``[M, places, R, n, W, n]``."""
        m, rows, chunk, kinds = grid.shape[:4]
        count = self.places(chunk)
        if self.inside:
            cut = grid.view(m, rows, count, self.size, kinds, count, self.size)
        else:
            cut = grid.view(m, rows, count, 2, self.size, kinds, count, 2, self.size)[:, :, :, 1, :, :, :, 0]
        return cut.diagonal(0, 2, 5).permute(0, 5, 1, 2, 3, 4)

    def by_kind(self, operand: torch.Tensor, chunk: int, kinds: int) -> torch.Tensor:
        """``[M places, kinds n, K]`` as ``[M, kinds, places, n, K]``, a view."""
        return operand.view(-1, self.places(chunk), kinds, self.size, operand.shape[2]).transpose(1, 2)


class SubChunks(NamedTuple):
    """The split of a chunk."""

    chunk: int
    block: int

    def floor(self, dtype: torch.dtype) -> float:
        """The lower limit of a step's log decay."""
        return -RANGE[dtype] / (self.block // 2)

    def pairs(self) -> List[SubChunkPair]:
        """All pairs of tokens, each once: inside blocks, then at the boundaries of sub-chunks, smallest first."""
        found, size = [SubChunkPair(self.block, True)], self.block
        while size < self.chunk:
            found.append(SubChunkPair(size, False))
            size *= 2
        return found


def choose_subchunks(chunk: int, dtype: torch.dtype, lower_bound: Optional[float] = None) -> SubChunks:
    """The largest blocks that log decays from ``lower_bound`` on allow; `BLOCK` tokens without a bound.

    Args:
        chunk: tokens in a chunk, a power of two, at least `BLOCK`.
        dtype: of the sums.
        lower_bound: no step's log decay is below this; None if unknown.

    Example:
        >>> choose_subchunks(64, torch.float32)
        SubChunks(chunk=64, block=8)
        >>> choose_subchunks(64, torch.float32, -0.6065)
        SubChunks(chunk=64, block=64)
    """
    block = BLOCK
    while lower_bound is not None and block < chunk and -lower_bound * block <= RANGE[dtype]:
        block *= 2
    return SubChunks(chunk, block)


def keep_seen(squares: torch.Tensor) -> torch.Tensor:
    """``[..., 2, n, W, n]`` with zeros for later tokens: the first kind sees s <= t, the second s < t."""
    ones = torch.ones(squares.shape[-1], squares.shape[-1], dtype=torch.bool, device=squares.device)
    keep = torch.stack((ones.tril(), ones.tril(-1))).unsqueeze(2)
    return torch.where(keep, squares, squares.new_zeros(()))


def join_squares(squares: List[torch.Tensor], split: SubChunks) -> torch.Tensor:
    """The products ``[M places, 2n, W n]`` of all pairs put together: ``[M, 2, C, W, C]``."""
    n = split.block
    inside = keep_seen(squares[0].view(-1, split.chunk // n, 2, n, squares[0].shape[2] // n, n))
    if not compiling():  # every part copied to its place
        whole = inside.new_zeros(inside.shape[0], 2, split.chunk, inside.shape[4], split.chunk)
        for pair, square in zip(split.pairs(), [inside, *squares[1:]]):
            place = pair.squares(whole)
            place.copy_(square.view(place.shape))
        return whole
    whole = inside  # copies every number once
    for square in squares[1:]:
        first, second = whole.unflatten(1, (-1, 2)).unbind(2)
        upper = torch.cat((first, torch.zeros_like(first)), dim=-1)
        whole = torch.cat((upper, torch.cat((square.view(first.shape), second), dim=-1)), dim=-3)
    return whole[:, 0]


def split_squares(grid: torch.Tensor, split: SubChunks) -> List[torch.Tensor]:
    """The inverse of `join_squares`: of ``[M, 2, C, W, C]`` every pair's part."""
    parts = [pair.squares(grid) for pair in split.pairs()]
    parts[0] = keep_seen(parts[0])
    return [x.reshape(-1, 2 * x.shape[3], x.shape[4] * x.shape[5]) for x in parts]

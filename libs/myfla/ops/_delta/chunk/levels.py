"""Chunks whose decay is too strong to be split into two factors at the chunk's start.

Two tokens s < t meet at the boundary of exactly one pair of neighbouring blocks of 1, 2, 4, ... tokens: s in the
first, t in the second. With the boundary as reference both ``exp(c_t - c_ref)`` and ``exp(c_ref - c_s)`` are decays
of real steps, at most one for log decays at or below zero, and what underflows is truly negligible. So this is right
for every log decay down to -inf, costs one product per level, and its gradients of the decay contain no term that a
decay should have removed: nothing cancels.
"""

from typing import Iterator, NamedTuple, Tuple

import torch
import torch.nn.functional as F

from myfla.ops._delta.chunk.decay import FLOOR, wide_dtype
from myfla.ops._delta.layout import Block

__all__ = ["Levels"]


class _SubChunkPair(NamedTuple):
    """One size of blocks. Rows of the second block of each pair, columns of the first."""

    half: int
    left: torch.Tensor  # [n, pairs, R, half, K]  rows, scaled from the boundary
    right: torch.Tensor  # [n, pairs, S, half, K]  columns, scaled to the boundary
    left_decay: torch.Tensor  # the scales alone
    right_decay: torch.Tensor


class Levels:
    """The tokens of the chosen matrices; chunks are filled up to a power of two with tokens that do nothing.

    Args:
        block: which chunks.
        gk: ``[B, T, HV, K]`` log decays.
        strong: ``[n]`` which matrices of the block.
        late: ``[n, C]`` bool, the tokens from the first strong decay of each on.
        before: whether the second kind of rows reads before its own decay.
        left: ``[n, R C, K]`` the rows, not scaled.
        right: ``[n, S C, K]`` the columns.
    """

    def __init__(
        self, block: Block, gk: torch.Tensor, strong: torch.Tensor, late: torch.Tensor, before: bool,
        left: torch.Tensor, right: torch.Tensor,
    ) -> None:
        self.chunk, self.size = block.chunk, 1 << max(0, block.chunk - 1).bit_length()
        self.strong, self.late, self.dtype = strong, late, left.dtype
        heads, key = gk.shape[2:]
        steps = gk.new_empty(block.size * heads, self.chunk, key, dtype=wide_dtype(gk.device, left.dtype))
        steps = self._filled(block.load(gk, steps).index_select(0, strong)).squeeze(1)
        self.finite = steps >= FLOOR
        self.c = steps.clamp_(min=FLOOR).cumsum(1)
        self.exclusive = F.pad(self.c[:, :-1], (0, 0, 1, 0))
        self.left, self.right = self._filled(left), self._filled(right)  # [n, R, size, K], [n, S, size, K]
        rows = [self.exclusive if row and before else self.c for row in range(self.left.shape[1])]
        self.rows, self.before = torch.stack(rows, dim=1), before

    def replace(self, left: torch.Tensor, out: torch.Tensor, g_last: torch.Tensor, A: torch.Tensor) -> None:
        """Write what `families.channel.scale_tokens` found of these matrices again, in place.

        Products of tokens before the first strong decay stay as they are, so that no token's result depends, by as
        much as a bit, on decays after it.
        """
        n, rows, columns, last = self.strong.numel(), self.left.shape[1], self.right.shape[1], self.c[:, -1:]
        left.index_copy_(0, self.strong, self._short(self.left * self._exp(self.rows)))
        out.index_copy_(0, self.strong, self._short(self.right * self._exp(last - self.c).unsqueeze(1)))
        g_last.index_copy_(0, self.strong, self._exp(last).transpose(1, 2))
        found = A.new_zeros(n, rows * self.size, columns * self.size)
        for level in self._levels():
            part = level.left.flatten(2, 3) @ level.right.flatten(2, 3).transpose(-1, -2)
            part = part.view(n, -1, rows, level.half, columns, level.half)
            self._corner(found, level.half).copy_(part.permute(0, 2, 3, 4, 5, 1))
        grid = found.view(n, rows, self.size, columns, self.size)
        grid[:, 0].diagonal(0, 1, 3).copy_((self.left[:, :1] * self.right).sum(-1))
        chunk = self.chunk
        grid = grid[:, :, :chunk, :, :chunk].reshape(n, rows * chunk, columns * chunk)
        late = self.late.repeat(1, rows).unsqueeze(2)
        A.index_copy_(0, self.strong, torch.where(late, grid, A.index_select(0, self.strong)))

    def grads(
        self, dA: torch.Tensor, dleft: torch.Tensor, dout: torch.Tensor, ends: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of left, right and gk of these matrices.

        Args:
            dA: ``[M, R C, S C]`` gradient of the products, cut like them.
            dleft: ``[M, R C, K]`` gradient of left through the state.
            dout: ``[M, S C, K]`` gradient of out.
            ends: ``[M, 1, K]`` what the decay of the whole chunk gets from the state before and the state after.
        """
        dA, dleft, dout, ends = (x.index_select(0, self.strong) for x in (dA, dleft, dout, ends))
        n, rows, columns, chunk, size = len(dA), self.left.shape[1], self.right.shape[1], self.chunk, self.size
        dleft = self._filled(dleft) * self._exp(self.rows)
        dright = self._filled(dout) * self._exp(self.c[:, -1:] - self.c).unsqueeze(1)
        # A read from before the chunk crosses the steps up to it, a hand-over the steps after it.
        crossing = self.left * dleft
        dgk = _sum_before((self.right * dright).sum(1)) + ends
        for row in range(rows):
            dgk = dgk + (_sum_after if row and self.before else _sum_from)(crossing[:, row])
        grid = F.pad(dA.view(n, rows, chunk, columns, chunk), (0, size - chunk, 0, 0, 0, size - chunk))
        grid = grid.reshape(n, rows * size, columns * size)
        for level in self._levels():
            half, split = level.half, (n, -1, size // (2 * level.half), 2 * level.half, dleft.shape[3])
            part = self._corner(grid, half).permute(0, 5, 1, 2, 3, 4).flatten(4, 5).flatten(2, 3)
            to_left = (part @ level.right.flatten(2, 3)).view(level.left.shape)
            to_right = (part.transpose(-1, -2) @ level.left.flatten(2, 3)).view(level.right.shape)
            dleft.view(split)[:, :, :, half:] += (to_left * level.left_decay).transpose(1, 2)
            dright.view(split)[:, :, :, :half] += (to_right * level.right_decay).transpose(1, 2)
            crossing, steps = level.left * to_left, dgk.view(n, -1, 2 * half, dgk.shape[2])
            for row in range(rows):
                steps[:, :, half:] += (_sum_after if row and self.before else _sum_from)(crossing[:, :, row])
            steps[:, :, :half] += _sum_before((level.right * to_right).sum(2))
        own = grid.view(n, rows, size, columns, size)[:, 0].diagonal(0, 1, 3).unsqueeze(-1)
        dleft[:, 0] += (own * self.right).sum(1)
        dright += own * self.left[:, :1]
        dgk = torch.where(self.finite, dgk, dgk.new_zeros(()))
        return self._short(dleft), self._short(dright), dgk[:, :chunk]

    def _filled(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, R C, D]`` as ``[n, R, size, D]``."""
        return F.pad(x.view(x.shape[0], -1, self.chunk, x.shape[2]), (0, 0, 0, self.size - self.chunk))

    def _short(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `_filled`."""
        return x[:, :, : self.chunk].flatten(1, 2)

    def _exp(self, x: torch.Tensor) -> torch.Tensor:
        """``exp(x)`` in the dtype of the computation; a float32 exponential that underflows is slow."""
        return x.clamp(min=-700.0).exp().to(self.dtype) if x.dtype == torch.float64 else x.exp()

    def _levels(self) -> Iterator[_SubChunkPair]:
        """All sizes of blocks, from 1 up."""
        half, n, key = 1, self.c.shape[0], self.c.shape[2]
        while half < self.size:
            split = (n, -1, self.size // (2 * half), 2 * half, key)
            c = self.c.view(n, -1, 2 * half, key)
            reference = c[:, :, half - 1 : half].unsqueeze(2)
            rows = self._exp(self.rows.view(split)[:, :, :, half:].transpose(1, 2) - reference)
            columns = self._exp(reference - c[:, :, :half].unsqueeze(2))
            left = self.left.view(split)[:, :, :, half:].transpose(1, 2) * rows
            right = self.right.view(split)[:, :, :, :half].transpose(1, 2) * columns
            yield _SubChunkPair(half, left, right, rows, columns)
            half *= 2

    def _corner(self, matrix: torch.Tensor, half: int) -> torch.Tensor:
        """View ``[n, R, half, S, half, pairs]`` of ``[n, R size, S size]``: rows of second, columns of first blocks."""
        count, rows, columns = self.size // (2 * half), self.left.shape[1], self.right.shape[1]
        grid = matrix.view(-1, rows, count, 2 * half, columns, count, 2 * half)
        return grid.diagonal(0, 2, 5)[:, :, half:, :, :half]


def _sum_from(x: torch.Tensor) -> torch.Tensor:
    """Along tokens (next to last): the sum over this one and all later ones."""
    return x.flip(-2).cumsum(-2).flip(-2)


def _sum_after(x: torch.Tensor) -> torch.Tensor:
    """The sum over all later ones."""
    return F.pad(_sum_from(x[..., 1:, :]), (0, 0, 0, 1))


def _sum_before(x: torch.Tensor) -> torch.Tensor:
    """The sum over all earlier ones."""
    return F.pad(x[..., :-1, :].cumsum(-2), (0, 0, 1, 0))

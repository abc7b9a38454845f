"""Products in chunks whose decay is too strong to be split into two factors at the chunk's start.

Sub-chunks of 1, 2, 4, ... tokens each have a separate reference (`subchunks`). Two tokens s < t lie on either side of
the boundary of exactly one pair of neighbours: with it as reference both ``exp(c_t - c_ref)`` and ``exp(c_ref - c_s)``
are decays of real steps, at most one for log decays at or below zero, and what underflows is truly negligible. So the
result is correct for every log decay down to -inf, and needs one product for each size. The gradients of decays contain
no terms that would have to cancel.
"""

from typing import Tuple

import torch
import torch.nn.functional as F

from myfla.ops._delta.chunk.decay import FLOOR, wide_dtype
from myfla.ops._delta.layout import Block
from myfla.ops._delta.subchunks import SubChunkPair, SubChunks

__all__ = ["StrongDecays"]


class StrongDecays:
    """The tokens of the matrices beyond the limit; chunks are padded to a power of two with tokens that do nothing.

    Args:
        block: which chunks.
        gk: ``[B, T, HV, K]`` log decays.
        matrices: ``[n]`` which matrices of the block.
        late: ``[n, C]`` bool, in each matrix the tokens from the first strong decay on.
        before: whether the second kind of rows reads before its own decay.
        left: ``[n, R C, K]`` the rows, not scaled.
        right: ``[n, S C, K]`` the columns.
    """

    def __init__(
        self, block: Block, gk: torch.Tensor, matrices: torch.Tensor, late: torch.Tensor, before: bool,
        left: torch.Tensor, right: torch.Tensor,
    ) -> None:
        self.chunk, self.size = block.chunk, 1 << max(0, block.chunk - 1).bit_length()
        self.pairs = SubChunks(self.size, 1).pairs()[1:]  # except for a token with itself
        self.matrices, self.late, self.dtype = matrices, late, left.dtype
        heads, key = gk.shape[2:]
        steps = gk.new_empty(block.size * heads, self.chunk, key, dtype=wide_dtype(gk.device, left.dtype))
        steps = self._pad(block.load(gk, steps).index_select(0, matrices)).squeeze(1)
        self.finite = steps >= FLOOR
        self.c = steps.clamp_(min=FLOOR).cumsum(1)
        exclusive = F.pad(self.c[:, :-1], (0, 0, 1, 0))
        self.left, self.right = self._pad(left), self._pad(right)  # [n, R, size, K], [n, S, size, K]
        rows = [exclusive if row and before else self.c for row in range(self.left.shape[1])]
        self.from_start, self.before = torch.stack(rows, dim=1), before

    def replace(self, left: torch.Tensor, out: torch.Tensor, g_last: torch.Tensor, A: torch.Tensor) -> None:
        """Compute the results of `families.channel.scale_tokens` for these matrices again, in place.

        Products of tokens before the first strong decay are kept, so that no bit of a token's result depends on later
        decays.
        """
        n, rows, columns, last = self.matrices.numel(), self.left.shape[1], self.right.shape[1], self.c[:, -1:]
        left.index_copy_(0, self.matrices, self._unpad(self.left * self._exp(self.from_start)))
        out.index_copy_(0, self.matrices, self._unpad(self.right * self._exp(last - self.c).unsqueeze(1)))
        g_last.index_copy_(0, self.matrices, self._exp(last).transpose(1, 2))
        grid = A.new_zeros(n, rows, self.size, columns, self.size)
        for pair in self.pairs:
            _, _, later, earlier = self._scaled(pair)
            square = pair.squares(grid)
            square.copy_((_by_place(later) @ _by_place(earlier).transpose(-1, -2)).view(square.shape))
        grid[:, 0].diagonal(0, 1, 3).copy_((self.left[:, :1] * self.right).sum(-1))
        chunk = self.chunk
        grid = grid[:, :, :chunk, :, :chunk].reshape(n, rows * chunk, columns * chunk)
        late = self.late.repeat(1, rows).unsqueeze(2)
        A.index_copy_(0, self.matrices, torch.where(late, grid, A.index_select(0, self.matrices)))

    def grads(
        self, dA: torch.Tensor, dleft: torch.Tensor, dout: torch.Tensor, h_dh: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of left, right and gk of these matrices.

        Args:
            dA: ``[M, R C, S C]`` gradient of the products, cut like them.
            dleft: ``[M, R C, K]`` gradient of left through the state.
            dout: ``[M, S C, K]`` gradient of out.
            h_dh: ``[M, 1, K]`` gradient of the whole chunk's log decay through the states before and after it.
        """
        dA, dleft, dout, h_dh = (x.index_select(0, self.matrices) for x in (dA, dleft, dout, h_dh))
        n, rows, columns, chunk, size = len(dA), self.left.shape[1], self.right.shape[1], self.chunk, self.size
        dleft = self._pad(dleft) * self._exp(self.from_start)
        dright = self._pad(dout) * self._exp(self.c[:, -1:] - self.c).unsqueeze(1)
        # A read of the incoming state crosses the steps up to it, a write to the chunk's end the steps after it.
        dgk = _sum_before((self.right * dright).sum(1)) + h_dh + self._sum_reads(self.left * dleft)
        grid = F.pad(dA.view(n, rows, chunk, columns, chunk), (0, size - chunk, 0, 0, 0, size - chunk))
        for pair in self.pairs:
            to_reference, from_reference, later, earlier = self._scaled(pair)
            square = pair.squares(grid).flatten(4, 5).flatten(2, 3)
            dlater = _by_kind(square @ _by_place(earlier), rows)
            dearlier = _by_kind(square.transpose(-1, -2) @ _by_place(later), columns)
            pair.sides(dleft)[1].add_(dlater * from_reference)
            pair.sides(dright)[0].add_(dearlier * to_reference)
            first, second = pair.sides(dgk)
            first.add_(_sum_before((earlier * dearlier).sum(1)))
            second.add_(self._sum_reads(later * dlater))
        own = grid[:, 0].diagonal(0, 1, 3).unsqueeze(-1)
        dleft[:, 0] += (own * self.right).sum(1)
        dright += own * self.left[:, :1]
        dgk = torch.where(self.finite, dgk, dgk.new_zeros(()))
        return self._unpad(dleft), self._unpad(dright), dgk[:, :chunk]

    def _scaled(self, pair: SubChunkPair) -> Tuple[torch.Tensor, ...]:
        """Decays to and from the reference, and with them the rows of second and the columns of first sub-chunks,
        ``[n, kinds, places, half, K]`` each."""
        to_reference, from_reference = (self._exp(x) for x in pair.log_decays(self.c, self.from_start))
        later, earlier = pair.sides(self.left)[1] * from_reference, pair.sides(self.right)[0] * to_reference
        return to_reference, from_reference, later, earlier

    def _sum_reads(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the reads that cross each step, of ``[n, R, ..., tokens, K]``: those by its token and later ones,
        for rows that read before their decay those by later ones only."""
        kinds = x.unbind(1)
        total = _sum_from(kinds[0])
        for row in kinds[1:]:
            total = total + (_sum_after if self.before else _sum_from)(row)
        return total

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, R C, D]`` as ``[n, R, size, D]``."""
        return F.pad(x.view(x.shape[0], -1, self.chunk, x.shape[2]), (0, 0, 0, self.size - self.chunk))

    def _unpad(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `_pad`."""
        return x[:, :, : self.chunk].flatten(1, 2)

    def _exp(self, x: torch.Tensor) -> torch.Tensor:
        """``exp(x)`` in the dtype of the computation; a float32 exponential that underflows is slow."""
        return x.clamp(min=-700.0).exp().to(self.dtype) if x.dtype == torch.float64 else x.exp()


def _by_place(x: torch.Tensor) -> torch.Tensor:
    """``[n, kinds, places, half, K]`` as ``[n, places, kinds half, K]``."""
    return x.transpose(1, 2).flatten(2, 3)


def _by_kind(x: torch.Tensor, kinds: int) -> torch.Tensor:
    """The inverse of `_by_place`."""
    return x.unflatten(2, (kinds, -1)).transpose(1, 2)


def _sum_from(x: torch.Tensor) -> torch.Tensor:
    """Along tokens (next to last): the sum over this one and all later ones."""
    return x.flip(-2).cumsum(-2).flip(-2)


def _sum_after(x: torch.Tensor) -> torch.Tensor:
    """The sum over all later ones."""
    return F.pad(_sum_from(x[..., 1:, :]), (0, 0, 0, 1))


def _sum_before(x: torch.Tensor) -> torch.Tensor:
    """The sum over all earlier ones."""
    return F.pad(x[..., :-1, :].cumsum(-2), (0, 0, 1, 0))

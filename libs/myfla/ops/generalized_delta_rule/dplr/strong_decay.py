"""Chunks whose decay is too strong to be split into two factors at the chunk's start.

Two tokens s < t meet at the boundary of exactly one pair of neighbouring blocks of 1, 2, 4, ... tokens: s in the
first, t in the second. With the boundary as reference both ``exp(c_t - c_ref)`` and ``exp(c_ref - c_s)`` are decays
of real steps, at most one for log decays at or below zero, and what underflows is truly negligible. So this is right
for every log decay down to -inf, costs one product per level, and its gradients of the decay contain no term that a
decay should have removed: nothing cancels.
"""

from typing import TYPE_CHECKING, Iterator, NamedTuple, Tuple

import torch

from myfla.ops.common.layout import Block
from myfla.utils.dtypes import has_float64

if TYPE_CHECKING:
    from myfla.ops.generalized_delta_rule.dplr.chunk_factors import Factors, Inputs

FLOOR = -1000.0
"""A log decay below this is zero in every number format; -inf would turn differences into NaN."""


class _Level(NamedTuple):
    """One size of blocks. Rows of the second block of each pair, columns of the first."""

    half: int
    left: torch.Tensor  # [n, pairs, 2, half, K]  a and q, scaled from the boundary
    right: torch.Tensor  # [n, pairs, 2, half, K]  b and k, scaled to the boundary
    left_decay: torch.Tensor  # the scales alone
    right_decay: torch.Tensor


class _Tokens:
    """The tokens of the chosen matrices; chunks are filled up to a power of two with tokens that do nothing."""

    def __init__(self, block: Block, x: "Inputs", scale: float, strong: torch.Tensor, dtype: torch.dtype) -> None:
        self.chunk, self.size = block.chunk, 1 << max(0, block.chunk - 1).bit_length()
        heads, key = x.k.shape[2:]
        wide = torch.float64 if has_float64(x.gk.device) else dtype

        def load(t: torch.Tensor, kind: torch.dtype, pad: bool) -> torch.Tensor:
            buffer = t.new_empty(block.size, heads, self.chunk, key, dtype=kind)
            picked = block.load(t, buffer, pad).view(-1, self.chunk, key).index_select(0, strong)
            return torch.nn.functional.pad(picked, (0, 0, 0, self.size - self.chunk))

        steps = load(x.gk, wide, True)
        self.finite = steps >= FLOOR
        self.c = steps.clamp_(min=FLOOR).cumsum(1)
        self.before = torch.cat((torch.zeros_like(self.c[:, :1]), self.c[:, :-1]), dim=1)
        self.a, self.q = load(x.a, dtype, False), load(x.q, dtype, False).mul_(scale)
        self.b, self.k = load(x.b, dtype, True), load(x.k, dtype, True)
        self.dtype = dtype

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        """``exp(x)`` in the dtype of the computation; a float32 exponential that underflows is slow."""
        return x.clamp(min=-700.0).exp().to(self.dtype) if x.dtype == torch.float64 else x.exp()

    def levels(self) -> Iterator[_Level]:
        """All sizes of blocks, from 1 up."""
        half = 1
        while half < self.size:
            split = (self.c.shape[0], self.size // (2 * half), 2 * half, self.c.shape[2])
            c, before = self.c.view(split), self.before.view(split)
            reference = c[:, :, half - 1 : half]
            rows = torch.stack((before[:, :, half:] - reference, c[:, :, half:] - reference), dim=2)
            columns = (reference - c[:, :, :half]).unsqueeze(2)
            left = torch.stack((self.a.view(split)[:, :, half:], self.q.view(split)[:, :, half:]), dim=2)
            right = torch.stack((self.b.view(split)[:, :, :half], self.k.view(split)[:, :, :half]), dim=2)
            rows, columns = self.exp(rows), self.exp(columns)
            yield _Level(half, left * rows, right * columns, rows, columns)
            half *= 2

    def pairs(self, matrix: torch.Tensor, half: int) -> torch.Tensor:
        """View of ``[n, 2 size, 2 size]``: the products of one level, ``[n, pairs, 2 half, 2 half]`` copied."""
        return _corner(matrix, self.size, half).permute(0, 5, 1, 2, 3, 4).flatten(4, 5).flatten(2, 3)


def replace_factors(
    block: Block, x: "Inputs", scale: float, factors: "Factors", strong: torch.Tensor, late: torch.Tensor
) -> None:
    """Write left, hand, whole and products of the matrices ``strong`` again, in place.

    Products of tokens before the first strong decay stay as they are, so that no token's result depends, by as much
    as a bit, on decays after it.

    Args:
        block: which chunks.
        x: the arguments, `chunk_factors.Inputs`.
        scale: factor on q.
        factors: `chunk_factors.Factors`, worked out as if no decay were strong.
        strong: ``[n]`` which matrices.
        late: ``[n, C]`` bool, the tokens from the first strong decay of each on.
    """
    tokens = _Tokens(block, x, scale, strong, factors.left.dtype)
    chunk, size, n = tokens.chunk, tokens.size, strong.numel()
    last = tokens.c[:, -1:]
    fall = tokens.exp(last - tokens.c)
    halves = (
        (factors.left, tokens.a * tokens.exp(tokens.before), tokens.q * tokens.exp(tokens.c)),
        (factors.hand, tokens.b * fall, tokens.k * fall),
    )
    for target, upper, lower in halves:
        target.index_copy_(0, strong, torch.cat((upper[:, :chunk], lower[:, :chunk]), dim=1))
    factors.whole.index_copy_(0, strong, tokens.exp(last).transpose(1, 2))
    products = factors.products.new_zeros(n, 2 * size, 2 * size)
    for level in tokens.levels():
        found = level.left.flatten(2, 3) @ level.right.flatten(2, 3).transpose(-1, -2)
        found = found.view(n, -1, 2, level.half, 2, level.half)
        _corner(products, size, level.half).copy_(found.permute(0, 2, 3, 4, 5, 1))
    own = products[:, size:]
    own[:, :, :size].diagonal(0, 1, 2).copy_((tokens.q * tokens.b).sum(-1))
    own[:, :, size:].diagonal(0, 1, 2).copy_((tokens.q * tokens.k).sum(-1))
    products = products.view(n, 2, size, 2, size)[:, :, :chunk, :, :chunk].reshape(n, 2 * chunk, 2 * chunk)
    quick = factors.products.index_select(0, strong)
    factors.products.index_copy_(0, strong, torch.where(late.repeat(1, 2).unsqueeze(2), products, quick))


def token_gradients(
    block: Block,
    x: "Inputs",
    scale: float,
    strong: torch.Tensor,
    dpairs: torch.Tensor,
    dleft: torch.Tensor,
    dhand: torch.Tensor,
    ends: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, a, b and gk, ``[n, C, K]``, of the chosen matrices.

    Args:
        block, x, scale: as `replace_factors`.
        strong: ``[n]`` which matrices.
        dpairs: ``[n, 2C, 2C]`` gradient of products, cut like them.
        dleft: ``[n, 2C, K]`` gradient of left through the state.
        dhand: ``[n, 2C, K]`` gradient of hand.
        ends: ``[n, K]`` what the decay of the whole chunk gets from the state before and the state after.
    """
    tokens = _Tokens(block, x, scale, strong, dpairs.dtype)
    chunk, size, n, key = tokens.chunk, tokens.size, *dleft.shape[::2]

    def fill(t: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(t.view(n, 2, chunk, -1), (0, 0, 0, size - chunk))

    fall = tokens.exp(tokens.c[:, -1:] - tokens.c).unsqueeze(1)
    rise = torch.stack((tokens.exp(tokens.before), tokens.exp(tokens.c)), dim=1)
    dleft, dright = fill(dleft) * rise, fill(dhand) * fall
    left, right = torch.stack((tokens.a, tokens.q), dim=1), torch.stack((tokens.b, tokens.k), dim=1)
    # A read from before the chunk crosses the steps up to it, a hand-over the steps after it.
    crossing = left * dleft
    dgk = _sum_from(crossing[:, 1]) + _sum_after(crossing[:, 0])
    dgk += _sum_before((right * dright).sum(1)) + ends.unsqueeze(1)
    grid = torch.nn.functional.pad(dpairs.view(n, 2, chunk, 2, chunk), (0, size - chunk, 0, 0, 0, size - chunk))
    grid = grid.reshape(n, 2 * size, 2 * size)
    for level in tokens.levels():
        half = level.half
        part = tokens.pairs(grid, half)
        to_left = (part @ level.right.flatten(2, 3)).view(level.left.shape)
        to_right = (part.transpose(-1, -2) @ level.left.flatten(2, 3)).view(level.right.shape)
        split = (n, 2, size // (2 * half), 2 * half, key)
        dleft.view(split)[:, :, :, half:] += (to_left * level.left_decay).transpose(1, 2)
        dright.view(split)[:, :, :, :half] += (to_right * level.right_decay).transpose(1, 2)
        crossing, handed = level.left * to_left, (level.right * to_right).sum(2)
        steps = dgk.view(n, -1, 2 * half, key)
        steps[:, :, half:] += _sum_from(crossing[:, :, 1]) + _sum_after(crossing[:, :, 0])
        steps[:, :, :half] += _sum_before(handed)
    own = grid.view(n, 2, size, 2, size)[:, 1].diagonal(0, 1, 3).unsqueeze(-1)
    dleft[:, 1] += (own * right).sum(1)
    dright += own * tokens.q.unsqueeze(1)
    dgk = torch.where(tokens.finite, dgk, dgk.new_zeros(()))
    dq, dk, da, db = dleft[:, 1] * scale, dright[:, 1], dleft[:, 0], dright[:, 0]
    return dq[:, :chunk], dk[:, :chunk], da[:, :chunk], db[:, :chunk], dgk[:, :chunk]


def _corner(matrix: torch.Tensor, size: int, half: int) -> torch.Tensor:
    """View ``[n, 2, half, 2, half, pairs]`` of ``[n, 2 size, 2 size]``: rows of second, columns of first blocks."""
    count = size // (2 * half)
    grid = matrix.view(-1, 2, count, 2 * half, 2, count, 2 * half)
    return grid.diagonal(0, 2, 5)[:, :, half:, :, :half]


def _sum_from(x: torch.Tensor) -> torch.Tensor:
    """Along tokens (next to last): the sum over this one and all later ones."""
    return x.flip(-2).cumsum(-2).flip(-2)


def _sum_after(x: torch.Tensor) -> torch.Tensor:
    """The sum over all later ones."""
    total = torch.zeros_like(x)
    if x.shape[-2] > 1:
        total[..., :-1, :] = _sum_from(x[..., 1:, :])
    return total


def _sum_before(x: torch.Tensor) -> torch.Tensor:
    """The sum over all earlier ones."""
    total = torch.zeros_like(x)
    if x.shape[-2] > 1:
        total[..., 1:, :] = x[..., :-1, :].cumsum(-2)
    return total

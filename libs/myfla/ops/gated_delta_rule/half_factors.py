"""The factors of tokens and of pairs of tokens in the half-precision form.

Lengths, write strengths and decays never touch the half-precision queries and keys themselves: each is a number for a
token, or for a pair of them, and multiplies float32 sums or is rounded with a product's operand, once.
"""

from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops.gated_delta_rule.half_tokens import Cut
from myfla.utils.dtypes import has_float64

SIDE = 16
"""Decays between tokens of different blocks of this size go by way of the later block's start."""


class Factors(NamedTuple):
    """``c`` is the log decay summed from the chunk's start. [M, C, 1] unless said otherwise."""

    query: torch.Tensor  # scale, over the query's length if that is to be one
    key: torch.Tensor  # one over the key's length, or one
    write: torch.Tensor  # beta * key
    rise: torch.Tensor  # exp(c_i), from the chunk's start to the token
    fall: torch.Tensor  # exp(c_last - c_i), from the token to the chunk's end
    pair: torch.Tensor  # [M, C, C]  exp(c_i - c_j) for j <= i, else 0

    @property
    def whole(self) -> torch.Tensor:
        """``[M, 1, 1]``, from the chunk's start to its end."""
        return self.rise[:, -1:]


def load_factors(
    cut: Cut, g: torch.Tensor, beta: torch.Tensor, scale: float, lengths: Optional[Tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
) -> Factors:
    """Factors of all chunks in ``dtype``, exact for every gate.

    Args:
        g, beta: ``[B, T, HV]``.
        scale: factor on q.
        lengths: what makes q and k of length one, ``[B, T, H]`` each; None where they stay as they are.
    """
    wide = torch.float64 if has_float64(g.device) else torch.float32
    # Below the floor a decay is zero; -inf would turn differences into NaN.
    floor = -1000.0 if dtype == torch.float64 else -120.0
    c = cut.column(g, wide).clamp(min=floor).cumsum(1)
    rise, fall = c.exp().to(dtype), (c[:, -1:] - c).exp().to(dtype)
    strength = cut.column(beta, dtype)
    if lengths is None:
        one = torch.ones_like(strength)
        return Factors(one * scale, one, strength, rise, fall, pair_decay(c.squeeze(-1), dtype))
    query, key = (cut.column(x, dtype) for x in lengths)
    return Factors(query * scale, key, strength * key, rise, fall, pair_decay(c.squeeze(-1), dtype))


def pair_decay(c: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``exp(c_i - c_j)`` for ``j <= i``, zero above, ``[M, C, C]``.

    Within a block of `SIDE` tokens a decay is the exponential of a difference. Between blocks it is a product of two
    decays, to and from the later block's start, neither above one for log decays at or below zero.

    Args:
        c: ``[M, C]``.
    """
    count, chunk = c.shape
    side = min(SIDE, chunk)
    blocks = chunk // side
    start = torch.nn.functional.pad(c[:, side - 1 : -1 : side], (1, 0))
    inner = (c.view(count, blocks, side) - start.unsqueeze(-1)).to(dtype)
    place = torch.arange(chunk, device=c.device)
    future = place[:side].unsqueeze(0) > place[:side].unsqueeze(1)
    own = (inner.unsqueeze(-1) - inner.unsqueeze(-2)).masked_fill(future, -float("inf")).exp()
    if blocks == 1:
        return own.view(count, chunk, chunk)
    later = place.unsqueeze(0) >= place[::side].unsqueeze(1)
    before = (start.unsqueeze(-1) - c.unsqueeze(1)).to(dtype).masked_fill(later, -float("inf")).exp()
    pair = inner.exp().unsqueeze(-1) * before.unsqueeze(2)
    grid = pair.view(count, blocks, side, blocks, side)
    grid.diagonal(0, 1, 3).copy_(own.permute(0, 2, 3, 1))
    return grid.view(count, chunk, chunk)


def reciprocal_length(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``rsqrt(sum(x^2) + 1e-6)`` of the last axis of ``[B, T, H, D]``: what makes a row's length one."""
    length = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return (length * length + 1e-6).rsqrt()

"""Decays of one number a head inside a chunk, exact for every gate.

With ``c_i`` the log decay summed from the chunk's start: ``exp_g = exp(c_i)`` carries the incoming state to token i,
``exp_g_to_end = exp(c_last - c_i)`` carries token i to the chunk's end, ``decay_mask = exp(c_i - c_j)`` token j to i.
Differences are taken before the exponential and in float64 where the device has it: products of ``exp(c)`` and
``exp(-c)`` overflow for a strong gate, and float32 sums of one lose four digits.
"""

import math
from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import Buffers, split_heads
from myfla.utils.dtypes import has_float64

FLOOR = -1000.0
"""A log decay below this is zero in every number format; -inf would turn differences into NaN."""

LEAST = {torch.float32: -86.0, torch.float64: -700.0}
"""Exponentials of less become zero: on a CPU one that underflows takes thirty times as long as another."""


def wide_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What log decays are summed in."""
    return torch.float64 if has_float64(device) else dtype


class TokenDecays(NamedTuple):
    """The numbers that stand beside every token."""

    g_last_exp: torch.Tensor  # [M, 1, 1]  decay from the chunk's start to its end
    exp_g_to_end: torch.Tensor  # [M, C, 1]
    beta: torch.Tensor  # [M, C, 1]
    k_out: torch.Tensor  # [M, C, 1]  beta exp_g_to_end, the factor of a key that writes
    qk_in: torch.Tensor  # [M, 2C, 1]  scale exp_g, of a query that reads, over exp_g, of a key that reads


def token_decays(
    block: Block, g: torch.Tensor, beta: Optional[torch.Tensor], scale: float, dtype: torch.dtype
) -> Tuple[torch.Tensor, TokenDecays]:
    """``c [M, C]``, in float64 where there is, and the decays of one block.

    Args:
        block: which chunks.
        g, beta: ``[B, T, HV]``; beta is one where it is None.
        scale: the queries' factor.
        dtype: what is computed in.
    """
    heads, chunk = g.shape[2], block.chunk
    c = g.new_empty(block.size * heads, chunk, 1, dtype=wide_dtype(g.device, dtype))
    block.load(g.unsqueeze(-1), split_heads(c, heads))
    c = c.clamp_(min=FLOOR).cumsum_(1)
    weight = g.new_empty(c.shape, dtype=dtype)
    if beta is None:
        weight.fill_(1.0)
    else:
        block.load(beta.unsqueeze(-1), split_heads(weight, heads))
    exp_g, to_end = _exp(c.clone(), weight), _exp(c[:, -1:] - c, weight)
    return c[..., 0], TokenDecays(exp_g[:, -1:], to_end, weight, weight * to_end, torch.cat([exp_g * scale, exp_g], 1))


def decay_mask(c: torch.Tensor, buffers: Buffers, out: torch.Tensor) -> torch.Tensor:
    """``exp(c_i - c_j)``, the factor of the products of a chunk's queries and keys with its keys.

    Args:
        c: ``[M, C]``.
        buffers: for what comes in between.
        out: ``[M, C, C]``, written; zero for ``j > i``.
    """
    chunk = c.shape[1]
    difference = buffers.temporary("difference", chunk, chunk, dtype=c.dtype)
    torch.sub(c[:, :, None], c[:, None, :], out=difference)
    least = LEAST[out.dtype]
    out.copy_(difference).tril_().clamp_(min=least).exp_()  # the rest, which would overflow, is made one, and then zero
    return torch.threshold_(out, math.exp(least + 1), 0.0).tril_()


def sums_between(g: torch.Tensor) -> torch.Tensor:
    """``L[i, j] = g[j + 1] + ... + g[i]`` for ``i >= j`` of ``g [..., C, D]``, and -inf above the diagonal.

    Each is summed by itself, not as a difference: exact where g is large, and safe where it is -inf. Differentiable.

    Returns:
        ``[..., C, C, D]``.
    """
    size = g.shape[-2]
    below = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1).unsqueeze(-1)
    sums = torch.where(below, g.unsqueeze(-2), g.new_zeros(())).cumsum(-3)
    upper = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1).unsqueeze(-1)
    return sums.masked_fill(upper, -float("inf"))


def _exp(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``exp(x)`` in the dtype of ``like``, computed in that of x, which is overwritten."""
    return torch.empty_like(x, dtype=like.dtype).copy_(x.clamp_(min=LEAST[x.dtype]).exp_())

"""What forward and backward of the chunk form both start from: tokens scaled to the start of their chunk.

With ``c_t`` the log decay summed from the chunk's start, per channel, ``before_t`` the same without token t, and
rows for tokens::

    left     = [a exp(before); q exp(c)]          carries the incoming state to each token
    right    = [b exp(-c);     k exp(-c)]         so that left right^T holds every decay between two tokens
    hand     = [b exp(c_last - c); k exp(c_last - c)]     carries each token to the chunk's end
    whole    = exp(c_last)
    products = left right^T, cut to the tokens that are seen: a sees s < t, q sees s <= t

Splitting ``exp(c_t - c_s)`` into two factors is exact to rounding while ``|c|`` stays within `LIMIT` in the chunk (the
RWKV-7 layer's decay, at least -0.6065 a step, sums to 39 over 64 tokens). In chunks and heads beyond, the tokens from
the first that leaves the limit are worked out again by `strong_decay`, which is right for every decay down to -inf.
"""

import math
from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block
from myfla.ops.common.workspace import Workspace, split_heads
from myfla.ops.generalized_delta_rule.dplr import strong_decay
from myfla.utils.dtypes import has_float64

LIMIT = 40.0
"""Largest summed log decay, up or down, that a chunk may have on the quick way: both factors stay below exp(40)."""


class Inputs(NamedTuple):
    """The arguments of the rule, as the caller gave them."""

    q: torch.Tensor  # [B, T, H, K]
    k: torch.Tensor  # [B, T, H, K]
    v: torch.Tensor  # [B, T, H, V]
    a: torch.Tensor  # [B, T, H, K]
    b: torch.Tensor  # [B, T, H, K]
    gk: torch.Tensor  # [B, T, H, K]


class Factors(NamedTuple):
    """One block of M chunks (M counts heads too). The upper halves belong to a and b, the lower ones to q and k."""

    rise: torch.Tensor  # [M, C + 1, K]  exp(c): before the first token, then after each
    left: torch.Tensor  # [M, 2C, K]
    right: torch.Tensor  # [M, 2C, K]
    hand: torch.Tensor  # [M, 2C, K]
    whole: torch.Tensor  # [M, K, 1]
    products: torch.Tensor  # [M, 2C, 2C]

    @staticmethod
    def sizes(chunk: int, key: int) -> Tuple[Tuple[int, int], ...]:
        """Rows and columns of each."""
        tokens = (2 * chunk, key)
        return (chunk + 1, key), tokens, tokens, tokens, (key, 1), (2 * chunk, 2 * chunk)


def chunk_factors(block: Block, x: Inputs, scale: float, f: Factors, wide: Workspace) -> Optional[torch.Tensor]:
    """Load one block and scale it.

    Args:
        block: which chunks.
        x: the arguments.
        scale: factor on q.
        f: where the factors go, written.
        wide: buffers for sums of log decays.

    Returns:
        ``[n]`` int64, the matrices that went the other way; None where there are none.
    """
    heads, chunk = x.k.shape[2], block.chunk
    strong = _decay(block, x.gk, f.rise, wide)
    before, after = (split_heads(r, heads) for r in (f.rise[:, :-1], f.rise[:, 1:]))
    (a, q), (b, k) = (split_heads(both, heads).chunk(2, 2) for both in (f.left, f.right))
    block.load(x.a, a, False, torch.mul, before)
    block.load(x.q, q, False, torch.mul, after)
    block.load(x.b, b, True, torch.div, after)
    block.load(x.k, k, True, torch.div, after)
    if scale != 1:
        q.mul_(scale)
    last = f.rise[:, chunk:]
    f.whole.copy_(last.transpose(1, 2))
    torch.mul(f.right, last, out=f.hand)
    torch.bmm(f.left, f.right.transpose(1, 2), out=f.products)
    if strong is not None:
        late = _beyond_limit(f.rise[:, 1:].index_select(0, strong)).any(2).cumsum(1) > 0
        strong_decay.replace_factors(block, x, scale, f, strong, late)
    keep_seen(f.products)
    return strong


def keep_seen(pairs: torch.Tensor) -> torch.Tensor:
    """Zero, in place, what lies in the future in ``[M, 2C, 2C]``: on and above the diagonal for a, above it for q."""
    for rows, first in zip(pairs.chunk(2, 1), (-1, 0)):
        for quarter in rows.chunk(2, 2):
            quarter.tril_(first)
    return pairs


def _decay(block: Block, gk: torch.Tensor, rise: torch.Tensor, wide: Workspace) -> Optional[torch.Tensor]:
    """Fill ``rise`` with ``exp(c)``; returns the indices of the matrices whose decay is too strong for the quick way.

    Summed in float64 where there is one: rounding errors of a float32 sum would be the largest of all. Every matrix is
    judged by itself, so that no row and no earlier token feels another's decay; a NaN counts as within.
    """
    heads, chunk, key = gk.shape[2], block.chunk, gk.shape[3]
    steps = wide.get("steps", block.size * heads, chunk, key)
    block.load(gk, split_heads(steps, heads))
    rise[:, :1].fill_(1.0)
    rise[:, 1:].copy_(torch.cumsum(steps, 1, out=steps).exp_())
    flat = rise.flatten(1)
    strong = _beyond_limit(flat.amin(1)).logical_or_(_beyond_limit(flat.amax(1)))
    if not bool(strong.any()):
        return None
    rise.clamp_(min=1e-30, max=1e30)
    return strong.nonzero(as_tuple=True)[0]


def _beyond_limit(rise: torch.Tensor) -> torch.Tensor:
    """Where ``exp(c)`` has left the limit."""
    return (rise < math.exp(-LIMIT)).logical_or_(rise > math.exp(LIMIT))


def wide_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What log decays are summed in."""
    return torch.float64 if has_float64(device) else dtype

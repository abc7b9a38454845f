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

from typing import NamedTuple, Optional, Tuple

import torch

from myfla.ops.common.layout import Block
from myfla.ops.common.scratch import Scratch, split_heads
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

    rise: torch.Tensor  # [M, C, K]   exp(c)
    fall: torch.Tensor  # [M, C, K]   exp(-c)
    left: torch.Tensor  # [M, 2C, K]
    right: torch.Tensor  # [M, 2C, K]
    hand: torch.Tensor  # [M, 2C, K]
    whole: torch.Tensor  # [M, K, 1]
    products: torch.Tensor  # [M, 2C, 2C]
    strong: Optional[torch.Tensor]  # [n] int64, the matrices that went the other way; None where there are none


def chunk_factors(block: Block, x: Inputs, scale: float, scratch: Scratch, wide: Scratch) -> Factors:
    """Load one block and scale it.

    Args:
        block: which chunks.
        x: the arguments.
        scale: factor on q.
        scratch: buffers in the dtype of the computation.
        wide: buffers for sums of log decays.
    """
    heads, chunk, key = x.k.shape[2], block.chunk, x.k.shape[3]
    size = block.size * heads
    rise, strong = _decay(block, x.gk, scratch, wide)
    if strong is not None:
        rise.clamp_(min=1e-30, max=1e30)
    fall = scratch.get("fall", size, chunk, key)
    torch.reciprocal(rise, out=fall)
    left, right = (scratch.get(name, size, 2 * chunk, key) for name in ("left", "right"))
    for buffer, upper, lower, pad in ((left, x.a, x.q, False), (right, x.b, x.k, True)):
        split = split_heads(buffer, heads)
        block.load(upper, split[:, :, :chunk], pad)
        block.load(lower, split[:, :, chunk:], pad)
    left[:, 1:chunk].mul_(rise[:, :-1])
    left[:, chunk:].mul_(rise)
    if scale != 1:
        left[:, chunk:].mul_(scale)
    both = right.view(size, 2, chunk, key)
    both.mul_(fall.unsqueeze(1))
    last = rise[:, -1:]
    hand = torch.mul(right, last, out=scratch.get("hand", size, 2 * chunk, key))
    products = torch.bmm(left, right.transpose(1, 2), out=scratch.get("products", size, 2 * chunk, 2 * chunk))
    factors = Factors(rise, fall, left, right, hand, last.transpose(1, 2), products, strong)
    if strong is not None:
        factors = factors._replace(whole=factors.whole.clone())
        late = _beyond_limit(rise.index_select(0, strong)).any(2).cumsum(1) > 0
        strong_decay.replace_factors(block, x, scale, factors, strong, late)
    keep_seen(products)
    return factors


def keep_seen(pairs: torch.Tensor) -> torch.Tensor:
    """Zero, in place, what lies in the future in ``[M, 2C, 2C]``: on and above the diagonal for a, above it for q."""
    chunk = pairs.shape[1] // 2
    for column in (slice(0, chunk), slice(chunk, None)):
        pairs[:, :chunk, column].tril_(-1)
        pairs[:, chunk:, column].tril_()
    return pairs


def _decay(
    block: Block, gk: torch.Tensor, scratch: Scratch, wide: Scratch
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``exp(c)``, and the indices of the matrices whose decay is too strong for the quick way.

    Summed in float64 where there is one: rounding errors of a float32 sum would be the largest of all. Every matrix is
    judged by itself, so that no row and no earlier token feels another's decay; a NaN counts as within.
    """
    heads, chunk, key = gk.shape[2], block.chunk, gk.shape[3]
    size = block.size * heads
    steps = wide.get("steps", size, chunk, key)
    block.load(gk, split_heads(steps, heads))
    rise = scratch.get("rise", size, chunk, key)
    rise.copy_(torch.cumsum(steps, 1, out=steps).exp_())
    flat = rise.flatten(1)
    strong = _beyond_limit(torch.stack((flat.amin(1), flat.amax(1)))).any(0)
    return rise, strong.nonzero(as_tuple=True)[0] if bool(strong.any()) else None


def _beyond_limit(rise: torch.Tensor) -> torch.Tensor:
    """Where ``exp(c)`` has left the limit."""
    low, high = torch.exp(rise.new_tensor([-LIMIT, LIMIT]))
    return (rise < low) | (rise > high)


def wide_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What log decays are summed in."""
    return torch.float64 if has_float64(device) else dtype

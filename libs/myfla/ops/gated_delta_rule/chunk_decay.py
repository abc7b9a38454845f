"""The decays inside a chunk, exact for every gate, and what else each token carries.

With ``c_i`` the log decay summed from the chunk's start: ``rise = exp(c_i)`` carries the incoming state to token i,
``fall = exp(c_last - c_i)`` carries token i to the chunk's end, ``exp(c_i - c_j)`` carries token j to token i.
Differences are taken before the exponential and in float64 where the device has it: products of ``exp(c)`` and
``exp(-c)`` overflow for a strong gate, and float32 sums of one lose four digits.
"""

import math
from typing import NamedTuple, Sequence, Tuple

import torch

from myfla.ops.common.layout import Block
from myfla.ops.common.workspace import Workspace, part, split_heads
from myfla.utils.dtypes import has_float64

FLOOR = -1000.0
"""A log decay below this is zero in every number format; -inf would turn differences into NaN."""

LEAST = {torch.float32: -86.0, torch.float64: -700.0}
"""Exponentials of less become zero: on a CPU one that underflows takes thirty times as long as another."""


def wide_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What log decays are summed in."""
    return torch.float64 if has_float64(device) else dtype


class Columns(NamedTuple):
    """What every token of some chunks carries; M counts chunks and heads."""

    whole: torch.Tensor  # [M, 1, 1]    decay from the chunk's start to its end
    fall: torch.Tensor  # [M, C, 1]
    strength: torch.Tensor  # [M, C, 1]  beta
    hand: torch.Tensor  # [M, C, 1]     beta fall, the factor of a key that writes
    meet: torch.Tensor  # [M, 2C, 1]    scale rise, the factor of a query that reads, over rise, of a key that erases

    def part(self, at: slice) -> "Columns":
        """The columns of some of the chunks."""
        return Columns(*(part(x, at) for x in self))

    @staticmethod
    def joined(several: Sequence["Columns"], like: torch.Tensor) -> "Columns":
        """The columns of one group after another; of no tokens at all, nothing in the place of each."""
        if not several:
            return Columns(*(like.new_empty(0) for _ in Columns._fields))
        return several[0] if len(several) == 1 else Columns(*map(torch.cat, zip(*several)))


def load_columns(
    block: Block, g: torch.Tensor, beta: torch.Tensor, scale: float, dtype: torch.dtype
) -> Tuple[torch.Tensor, Columns]:
    """``c [M, C]``, in float64 where there is, and the columns of one block, or of a whole group.

    Args:
        block: which chunks.
        g, beta: ``[B, T, HV]``.
        scale: the queries' factor.
        dtype: what is computed in.
    """
    heads, chunk = g.shape[2], block.chunk
    sums = g.new_empty(block.size * heads, chunk, 1, dtype=wide_dtype(g.device, dtype))
    block.load(g.unsqueeze(-1), split_heads(sums, heads))
    sums = sums.clamp_(min=FLOOR).cumsum_(1)
    strength = g.new_empty(sums.shape, dtype=dtype)
    block.load(beta.unsqueeze(-1), split_heads(strength, heads))
    rise, fall = _exp(sums.clone(), strength), _exp(sums[:, -1:] - sums, strength)
    columns = Columns(rise[:, -1:], fall, strength, strength * fall, torch.cat([rise * scale, rise], 1))
    return sums[..., 0], columns


def pair_decay(sums: torch.Tensor, wide: Workspace, out: torch.Tensor) -> torch.Tensor:
    """``exp(c_i - c_j)``, the factor of the products of a chunk's queries and keys with its keys.

    Args:
        sums: ``[M, C]``.
        wide: buffers in the dtype of ``sums``.
        out: ``[M, C, C]``, written; zero for ``j > i``.
    """
    size, chunk = sums.shape
    difference = torch.sub(sums[:, :, None], sums[:, None, :], out=wide.get("difference", size, chunk, chunk))
    least = LEAST[out.dtype]
    out.copy_(difference).tril_().clamp_(min=least).exp_()  # the rest, which would overflow, is made one, and then zero
    return torch.threshold_(out, math.exp(least + 1), 0.0).tril_()


def _exp(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``exp(x)`` in the dtype of ``like``, computed in that of x, which is overwritten."""
    return torch.empty_like(x, dtype=like.dtype).copy_(x.clamp_(min=LEAST[x.dtype]).exp_())

"""The decays inside a chunk, exact for every gate, and the write strengths beside them.

With ``c_i`` the log decay summed from the chunk's start: ``exp(c_i)`` carries the incoming state to token i,
``exp(c_last - c_i)`` carries token i to the chunk's end, ``exp(c_i - c_j)`` carries token j to token i. Differences
are taken before the exponential and in float64 where the device has it: products of ``exp(c)`` and ``exp(-c)``
overflow for a strong gate, and float32 sums of one lose four digits.
"""

from typing import NamedTuple

import torch

from myfla.ops.common.layout import Block
from myfla.ops.common.scratch import split_heads
from myfla.utils.dtypes import has_float64

FLOOR = -1000.0
"""A log decay below this is zero in every number format; -inf would turn differences into NaN."""


class Columns(NamedTuple):
    """What every token of some chunks carries; M counts chunks and heads."""

    sums: torch.Tensor  # [M, C]     c, in float64 where there is
    rise: torch.Tensor  # [M, C, 1]  decay from the chunk's start to the token
    fall: torch.Tensor  # [M, C, 1]  decay from the token to the chunk's end
    strength: torch.Tensor  # [M, C, 1]  beta
    read: torch.Tensor  # [M, C, 1]  scale * rise
    erase: torch.Tensor  # [M, C, 1]  beta * rise

    def part(self, at: slice) -> "Columns":
        """The columns of some of the chunks."""
        return Columns(*(x[at] for x in self))

    @property
    def whole(self) -> torch.Tensor:
        """``[M, 1, 1]`` decay from the chunk's start to its end."""
        return self.rise[:, -1:]


def load_columns(block: Block, g: torch.Tensor, beta: torch.Tensor, scale: float, dtype: torch.dtype) -> Columns:
    """Columns of one block, or of a whole group.

    Args:
        block: which chunks.
        g, beta: ``[B, T, HV]``.
        scale: the queries' factor.
        dtype: what is computed in.
    """
    heads, chunk = g.shape[2], block.chunk
    wide = torch.float64 if has_float64(g.device) else torch.float32
    sums = g.new_empty(block.size * heads, chunk, 1, dtype=wide)
    block.load(g.unsqueeze(-1), split_heads(sums, heads))
    sums = sums.clamp_(min=FLOOR).cumsum_(1)
    strength = g.new_empty(sums.shape, dtype=dtype)
    block.load(beta.unsqueeze(-1), split_heads(strength, heads))
    rise, fall = _exp(sums.clone(), strength), _exp(sums[:, -1:] - sums, strength)
    return Columns(sums[..., 0], rise, fall, strength, rise * scale, rise * strength)


def pair_decay(sums: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``exp(c_i - c_j)`` for ``j <= i``, zero above.

    Args:
        sums: ``[M, C]``.
        out: ``[M, C, C]``, written.
    """
    difference = sums[:, :, None] - sums[:, None, :]
    return out.copy_(_exp(difference.tril_(), out)).tril_()


def _exp(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``exp(x)`` in the dtype of ``like``; x may be overwritten.

    On a CPU a float32 exponential that underflows takes thirty times as long as one that does not, and a float64 one
    does not underflow here.
    """
    if x.device.type == "cpu" and x.dtype == torch.float64:
        return x.clamp_(min=-700.0).exp_().to(like.dtype)
    return x.to(like.dtype).exp_()

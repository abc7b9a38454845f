"""The decays inside a chunk, exact for every gate.

With ``c_i`` the log decay summed from the chunk's start: ``exp(c_i)`` carries the incoming state to token i,
``exp(c_last - c_i)`` carries token i to the chunk's end, ``exp(c_i - c_j)`` carries token j to token i. Differences
are taken before the exponential and in float64 where the device has it: products of ``exp(c)`` and ``exp(-c)``
overflow for a strong gate, and float32 sums of one lose four digits.
"""

from typing import NamedTuple

import torch

from myfla.ops.common.layout import Block
from myfla.ops.common.scratch import Scratch
from myfla.utils.dtypes import has_float64

FLOOR = -1000.0
"""A log decay below this is zero in every number format; -inf would turn differences into NaN."""


class Decay(NamedTuple):
    """Decays of M chunks; M counts heads too."""

    rise: torch.Tensor  # [M, C, 1]  chunk start -> token
    fall: torch.Tensor  # [M, C, 1]  token -> chunk end
    pair: torch.Tensor  # [M, C, C]  token j -> token i for j <= i; one above the diagonal
    whole: torch.Tensor  # [M, 1, 1]  chunk start -> chunk end


def chunk_decay(block: Block, g: torch.Tensor, scratch: Scratch) -> Decay:
    """Decays of one block.

    Args:
        block: which chunks.
        g: ``[B, T, HV]`` log decay of every step.
        scratch: buffers in the dtype of the computation.
    """
    heads, chunk = g.shape[2], block.chunk
    wide = torch.float64 if has_float64(g.device) else torch.float32
    steps = g.new_empty(block.size, heads, chunk, 1, dtype=wide)
    c = block.load(g.unsqueeze(-1), steps).clamp_(min=FLOOR).view(-1, chunk).cumsum_(-1)
    pair = _exp((c[:, :, None] - c[:, None, :]).tril_(), scratch.get("pair", c.shape[0], chunk, chunk))
    ends = torch.stack((c, c[:, -1:] - c), dim=1)
    ends = _exp(ends, torch.empty(ends.shape, dtype=scratch.dtype, device=g.device)).unsqueeze(-1)
    rise, fall = ends[:, 0], ends[:, 1]
    return Decay(rise, fall, pair, rise[:, -1:])


def _exp(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``exp(x)`` in the dtype of ``out``; x is overwritten.

    On a CPU a float32 exponential that underflows takes thirty times as long as one that does not, a float64 one
    does not underflow here.
    """
    if x.device.type == "cpu" and x.dtype == torch.float64:
        return out.copy_(x.clamp_(min=-700.0).exp_())
    return out.copy_(x).exp_()

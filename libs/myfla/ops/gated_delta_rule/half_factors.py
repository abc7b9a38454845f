"""The factors of tokens and of pairs of tokens in the half-precision form.

Lengths, write strengths and decays never touch the half-precision queries and keys themselves: each is a number for a
token, or for a pair of them, and multiplies float32 sums or is rounded with a product's operand, once.
"""

from typing import NamedTuple

import torch

from myfla.ops.common.half_tokens import Cut
from myfla.utils.dtypes import has_float64
from myfla.utils.tracing import compiling


class Factors(NamedTuple):
    """``c`` is the log decay summed from the chunk's start. [M, C, 1] each."""

    query: torch.Tensor  # scale, over the query's length if that is to be one
    key: torch.Tensor  # one over the key's length, or one
    write: torch.Tensor  # beta * key
    rise: torch.Tensor  # exp(c_i), from the chunk's start to the token
    fall: torch.Tensor  # exp(c_last - c_i), from the token to the chunk's end
    sums: torch.Tensor  # c, in float64 where the device has it

    @property
    def whole(self) -> torch.Tensor:
        """``[M, 1, 1]``, from the chunk's start to its end."""
        return self.rise[:, -1:]


class Decays(NamedTuple):
    """``rise``, ``fall`` and ``sums`` of `Factors`, and the write strengths beta."""

    rise: torch.Tensor
    fall: torch.Tensor
    sums: torch.Tensor
    strength: torch.Tensor


def load_decays(cut: Cut, g: torch.Tensor, beta: torch.Tensor, dtype: torch.dtype) -> Decays:
    """What g and beta ``[B, T, HV]`` come to in all chunks, in ``dtype``, exact for every gate."""
    wide = torch.float64 if has_float64(g.device) else torch.float32
    # Below the floor a decay is zero; -inf would turn differences into NaN.
    floor = -1000.0 if dtype == torch.float64 else -120.0
    c = cut.column(g, wide).clamp(min=floor).cumsum(1)
    return Decays(c.to(dtype).exp(), (c[:, -1:] - c).to(dtype).exp(), c, cut.column(beta, dtype))


def pair_decay(c: torch.Tensor, dtype: torch.dtype, strict: bool = False) -> torch.Tensor:
    """``exp(c_i - c_j)`` for ``j <= i``, else zero, ``[M, C, C]``: each the exponential of one difference.

    Args:
        c: ``[M, C, 1]``, finite.
        strict: leave out the diagonal.
    """
    diagonal = -1 if strict else 0
    later, earlier = c, c.transpose(1, 2)
    if compiling():
        return (later - earlier).to(dtype).exp().tril(diagonal)
    # The difference is formed in c's format and stored in the other: no pass and no memory for the wide one.
    pair = torch.empty((*c.shape[:2], c.shape[1]), dtype=dtype, device=c.device)
    return torch.sub(later, earlier, out=pair).exp_().tril_(diagonal)


def reciprocal_length(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``rsqrt(sum(x^2) + 1e-6)`` of the last axis, kept with size one: what makes a row's length one."""
    if compiling():
        return (x.to(dtype).square().sum(-1, keepdim=True) + 1e-6).rsqrt()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return (length * length).add_(1e-6).rsqrt_()

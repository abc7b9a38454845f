"""Decays inside a chunk for rules with one decay for each head, exact for every gate.

With ``c_i`` the log decay summed from the chunk's start: ``exp_g = exp(c_i)`` carries the incoming state to token i,
``exp_g_to_end = exp(c_last - c_i)`` carries token i to the chunk's end, ``decay_mask = exp(c_i - c_j)`` token j to i.
Differences are taken before the exponential and in float64 where the device has it: products of ``exp(c)`` and
``exp(-c)`` overflow for a strong gate, and float32 sums of one lose four digits.
"""

import math
from typing import NamedTuple, Optional

import torch

from myfla.ops._delta.layout import Block
from myfla.utils.dtypes import has_float64

FLOOR = -1000.0
"""A log decay below this is zero in every dtype; -inf would turn differences into NaN."""

LEAST = {torch.float32: -86.0, torch.float64: -700.0}
"""Exponentials of less become zero: on a CPU an exponential that underflows takes thirty times as long as others."""


def wide_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which log decays are summed."""
    return torch.float64 if has_float64(device) else dtype


class TokenDecays(NamedTuple):
    """The factors of every token."""

    qk_in: torch.Tensor  # [M, 2C, 1]  scale exp_g, of a query that reads, over exp_g, of a key that reads
    k_out: torch.Tensor  # [M, C, 1]  beta exp_g_to_end, the factor of a key that writes
    exp_g_to_end: torch.Tensor  # [M, C, 1]
    beta: torch.Tensor  # [M, C, 1]
    g_last_exp: torch.Tensor  # [M, 1, 1]  decay from the chunk's start to its end

    @classmethod
    def of(cls, decays: torch.Tensor, chunk: int) -> "TokenDecays":
        """Views of one tensor ``[M, 5C, 1]``."""
        qk_in, k_out, to_end, beta = decays.split((2 * chunk, chunk, chunk, chunk), 1)
        return cls(qk_in, k_out, to_end, beta, qk_in[:, 2 * chunk - 1 :])


def token_decays(
    block: Block, g: torch.Tensor, beta: Optional[torch.Tensor], scale: float, out: TokenDecays
) -> torch.Tensor:
    """Write the decays of one block; returns ``c [M, C]``, in float64 where the device has it.

    Args:
        block: which chunks.
        g, beta: ``[B, T, HV]``; beta is one where it is None.
        scale: the queries' factor.
        out: written.
    """
    chunk = block.chunk
    c = torch.empty(out.beta.shape, dtype=wide_dtype(g.device, out.beta.dtype), device=g.device)
    block.load(g.unsqueeze(-1), c)
    if beta is None:
        out.beta.fill_(1.0)
    else:
        block.load(beta.unsqueeze(-1), out.beta)
    c, least = c.clamp_(min=FLOOR).cumsum_(1), LEAST[c.dtype]
    exp_g = out.qk_in[:, chunk:].copy_(c.clamp(min=least).exp_())
    torch.mul(exp_g, scale, out=out.qk_in[:, :chunk])
    out.exp_g_to_end.copy_((c[:, -1:] - c).clamp_(min=least).exp_())
    torch.mul(out.beta, out.exp_g_to_end, out=out.k_out)
    return c[..., 0]


def decay_mask(c: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``exp(c_i - c_j)``, the factor of the products of a chunk's queries and keys with its keys.

    Args:
        c: ``[M, C]``.
        out: ``[M, C, C]``, written; zero for ``j > i``.
    """
    least = LEAST[out.dtype]
    # the rest would overflow: its exponent is made zero here, the result below
    out.copy_(c[:, :, None] - c[:, None, :]).tril_().clamp_(min=least).exp_()
    return torch.threshold_(out, math.exp(least + 1), 0.0).tril_()


def decay_grad(
    reads: torch.Tensor, writes: torch.Tensor, h_dh: torch.Tensor, A_dA: torch.Tensor
) -> torch.Tensor:
    """Gradient of the log decays ``[M, C, 1]``: that of a step is the sum of the products ``x dx`` over all paths that
    cross it.

    Args:
        reads: ``[M, C, 1]``, each token's reading of the incoming state, which crosses the steps up to that token.
        writes: ``[M, C, 1]``, its part of the state after the chunk, which crosses the steps after it.
        h_dh: ``[M, 1, 1]``, the incoming state's part of the state after the chunk, which crosses all steps.
        A_dA: ``[M, C, C]``, each row's reading of a column, which crosses the steps between. Zero on the diagonal and
            above it.
    """
    chunk = A_dA.shape[1]
    dg = reads.flip(1).cumsum_(1).flip(1).add_(h_dh)
    dg[:, 1:].add_(writes[:, :-1].cumsum(1))
    earlier = torch.ones(chunk, chunk, dtype=A_dA.dtype, device=A_dA.device).triu_(1)  # sums over the tokens before
    before = A_dA.reshape(-1, chunk) @ earlier
    return dg.add_(before.view(-1, chunk, chunk).tril_().sum(1).unsqueeze(-1))


def sums_between(g: torch.Tensor) -> torch.Tensor:
    """``L[i, j] = g[j + 1] + ... + g[i]`` for ``i >= j`` of ``g [..., C, D]``, and -inf above the diagonal.

    Each sum is computed separately, not as a difference of two: it is exact where g is large, and no NaN arises where g
    is -inf. Differentiable.

    Returns:
        ``[..., C, C, D]``.
    """
    size = g.shape[-2]
    below = torch.ones(size, size, dtype=torch.bool, device=g.device).tril(-1).unsqueeze(-1)
    sums = torch.where(below, g.unsqueeze(-2), g.new_zeros(())).cumsum(-3)
    upper = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1).unsqueeze(-1)
    return sums.masked_fill(upper, -float("inf"))

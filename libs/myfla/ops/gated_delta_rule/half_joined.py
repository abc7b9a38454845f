"""Passes of the half-precision form that a compiler makes one kernel of, the products in them included.

Nothing that they add up is written before it has been rounded. They replace products and passes of `half_fwd`.
"""

import torch

from myfla.ops.common.half_products import sums
from myfla.ops.common.half_tokens import Cut


def read_out(
    queries: torch.Tensor, factor: torch.Tensor, states: torch.Tensor, attend: torch.Tensor, delta: torch.Tensor,
    cut: Cut, like: torch.Tensor,
) -> torch.Tensor:
    """``O = (rise q) S^T + attend delta``, as tokens like ``like [B, T, HV, V]``.

    Args:
        queries: ``[M, C, K]``, Q; K a multiple of C.
        factor: ``[M, C, 1]``, what makes ``rise q`` of them.
        states: ``[M, V, K]``.
        attend, delta: ``[M, C, C]`` and ``[M, C, V]``.
    """
    asks = (queries * factor).to(queries.dtype)
    out = sums(attend, delta, factor.dtype)
    # Products as long as that one, which become part of its kernel.
    for some, of in zip(asks.split(cut.chunk, 2), states.split(cut.chunk, 2)):
        out = out + sums(some, of.transpose(1, 2), factor.dtype)
    return cut.store(out.to(like.dtype), like)

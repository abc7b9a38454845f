"""Passes of the half-precision form that a compiler makes one kernel of, the products in them included.

Nothing that they add up is written before it has been rounded, and nothing is cut or put together twice. They replace
products and passes of `half_fwd` where a chunk is one block, as it is with the layer's decays.
"""

from typing import List

import torch

from myfla.ops.common.half_inverse import invert_blocks, join_blocks
from myfla.ops.common.half_products import fine_sums, sums
from myfla.ops.common.half_tokens import Cut


def multiply_pairs(earlier: torch.Tensor, later: torch.Tensor, low: torch.dtype) -> torch.Tensor:
    """a over q ``[M, 2C, K]`` against b beside k, ``[M, 2C, 2C]`` in ``low``: a sees tokens before its own, q its own
    too."""
    products = fine_sums(later, earlier.transpose(1, 2), low)
    chunk = later.shape[1] // 2
    places = torch.arange(2 * chunk, device=later.device)
    token, asks = places % chunk, places // chunk
    seen = (token + asks).unsqueeze(1) > token
    return torch.where(seen, products, products.new_zeros(())).to(low)


def multiply_lower(earlier: torch.Tensor, later: torch.Tensor, low: torch.dtype) -> torch.Tensor:
    """``-A_ab [M, C, C]`` not rounded, with anything on and above the diagonal."""
    chunk = later.shape[1] // 2
    return fine_sums(later[:, :chunk], earlier[:, :chunk].transpose(1, 2), low).neg()


def invert(leaves: torch.Tensor, corners: List[torch.Tensor], low: torch.dtype) -> torch.Tensor:
    """The inverse ``T [M, C, C]`` in ``low``, of the blocks that `half_inverse` reads."""
    return join_blocks(*invert_blocks(leaves, corners)).to(low)


def join_transitions(give: torch.Tensor, take: torch.Tensor, c: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`half_fwd.transitions`."""
    whole = torch.diag_embed(c[:, -1].exp())
    return sums(give.transpose(1, 2), take, dtype) + whole


def read_out(
    asks: torch.Tensor, states: torch.Tensor, pairs: torch.Tensor, u: torch.Tensor, v: torch.Tensor, cut: Cut,
    like: torch.Tensor, dtype: torch.dtype,
) -> torch.Tensor:
    """``o = q' S + A_qb u + A_qk v``, as tokens like ``like [B, T, H, V]``.

    Args:
        asks: ``[M, C, K]``, q'.
        states: ``[M, K, V]``.
        pairs: ``[M, C, 2C]``, A_qb beside A_qk.
        u, v: ``[M, C, V]``.
        dtype: of the sums.
    """
    seen, given = pairs.split(cut.chunk, 2)
    out = sums(asks, states, dtype) + sums(seen, u, dtype) + sums(given, v, dtype)
    return cut.store(out.to(like.dtype), like)

"""Gated DeltaNet 2's rule in its plainest form: the specification."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.naive import delta_loop
from myfla.ops.common.checks import check_like, check_member
from myfla.ops.common.naive import chunk_loop, in_one_dtype
from myfla.utils.tensors import check_scale, check_size

__all__ = ["naive_chunk_gdn2", "naive_recurrent_gdn2"]


def naive_recurrent_gdn2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- diag(exp(g)) S;  S <- S + k (w * v - S^T (b * k))^T;  o = scale S^T q``, token by token.

    Args:
        q, k, g, b: ``[B, T, H, K]``: queries, keys, log decay, erase gate.
        v, w: ``[B, T, H, V]``: values, write gate.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[B, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_recurrent_gdn2(x, x, 3 * x, 0 * x, x, x)[0].flatten().tolist()
        [3.0, 3.0]
    """
    queries, k, v, g, b, w, scale, state = _prepared("naive_recurrent_gdn2", q, k, v, g, b, w, scale, initial_state)
    o, state = delta_loop(queries, k, w * v, g, torch.ones_like(g[..., 0]), scale, state, erase=b * k)
    return o.to(q.dtype), state if output_final_state else None


def naive_chunk_gdn2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The same chunk by chunk (`myfla.ops.common.naive`).

    Args:
        q, k, v, g, b, w, scale, initial_state, output_final_state: as `naive_recurrent_gdn2`.
        chunk_size: tokens in a chunk; any T.

    Returns:
        as `naive_recurrent_gdn2`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_chunk_gdn2(x, x, 3 * x, 0 * x, x, x)[0].flatten().tolist()
        [3.0, 3.0]
    """
    queries, k, v, g, b, w, scale, state = _prepared("naive_chunk_gdn2", q, k, v, g, b, w, scale, initial_state)
    check_size("naive_chunk_gdn2", "chunk_size", chunk_size, 1)
    o, state = chunk_loop(queries, k, w * v, g, b * k, scale, state, chunk_size)
    return o.to(q.dtype), state if output_final_state else None


def _prepared(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, b: torch.Tensor, w: torch.Tensor,
    scale: Optional[float], initial_state: Optional[torch.Tensor],
) -> Tuple[Any, ...]:  # fmt: skip
    """The tensors in one dtype, the factor on q, and the first state, once everything fits."""
    check_member(who, q, k, v, {}, initial_state, None, grouped=False)
    for name, x, like, of in (("g", g, "k", k), ("b", b, "k", k), ("w", w, "v", v)):
        check_like(who, name, x, like, of)
    converted, state = in_one_dtype((q, k, v, g, b, w), initial_state)
    return (*converted, check_scale(who, scale, q.shape[3]), state)

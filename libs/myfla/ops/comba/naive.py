"""Comba's rule in its plainest form: the specification."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.naive import delta_loop
from myfla.ops.common.checks import check_like, check_member
from myfla.ops.common.naive import chunk_loop, in_one_dtype
from myfla.utils.tensors import check_scale, check_size

__all__ = ["naive_chunk_comba", "naive_recurrent_comba"]


def naive_recurrent_comba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    p: torch.Tensor,
    beta: torch.Tensor,
    g: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- exp(g) S + k (beta (v - S^T p))^T;  o = scale S^T q``, token by token; p reads the state before it decays.

    So do the paper (arXiv 2506.02475), the official kernels and the official chunk form; the official file's function
    of this name lets p read the decayed state.

    Args:
        q, k, p: ``[B, T, H, K]``: queries, keys that write, keys that erase.
        v: ``[B, T, H, V]``.
        beta, g: ``[B, T, H]``: write strength, log decay; in this order, as in fla.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[B, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_recurrent_comba(x, x, 3 * x, x, x[..., 0], 0 * x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    queries, k, v, p, beta, g, scale, state = _prepared(
        "naive_recurrent_comba", q, k, v, p, beta, g, scale, initial_state)
    o, state = delta_loop(queries, k, v, g, beta, scale, state, erase=p, before=True)
    return o.to(q.dtype), state if output_final_state else None


def naive_chunk_comba(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    p: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The same chunk by chunk (`myfla.ops.common.naive`). Note the order: ``g`` before ``beta``.

    Args:
        q, k, v, p, g, beta, scale, initial_state, output_final_state: as `naive_recurrent_comba`.
        chunk_size: tokens in a chunk; any T.

    Returns:
        as `naive_recurrent_comba`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_chunk_comba(x, x, 3 * x, x, 0 * x[..., 0], x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    queries, k, v, p, beta, g, scale, state = _prepared(
        "naive_chunk_comba", q, k, v, p, beta, g, scale, initial_state)
    check_size("naive_chunk_comba", "chunk_size", chunk_size, 1)
    o, state = chunk_loop(queries, beta.unsqueeze(-1) * k, v, g, p, scale, state, chunk_size, before=True)
    return o.to(q.dtype), state if output_final_state else None


def _prepared(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: torch.Tensor, beta: torch.Tensor, g: torch.Tensor,
    scale: Optional[float], initial_state: Optional[torch.Tensor],
) -> Tuple[Any, ...]:  # fmt: skip
    """The tensors in one dtype, the factor on q, and the first state, once everything fits."""
    check_member(who, q, k, v, {"beta": (beta, ()), "g": (g, ())}, initial_state, None, grouped=False)
    check_like(who, "p", p, "k", k)
    x, state = in_one_dtype((q, k, v, p, beta, g), initial_state)
    return (*x, check_scale(who, scale, q.shape[3]), state)

"""Kimi Delta Attention's rule in its plainest form: the specification.

For every token, with the state ``S [K, V]`` of one head (arXiv 2510.26692)::

    S     <- diag(exp(g_t)) S                    forget, every key channel by itself
    S     <- S + k_t (beta_t (v_t - S^T k_t))^T  correct what the memory gets wrong about k_t
    o_t    = scale * S^T q_t                     read
"""

from typing import List, Optional, Tuple

import torch

from myfla.ops._delta.naive import delta_loop
from myfla.ops.common.checks import check_per_token, check_shapes, state_k_first
from myfla.ops.common.naive import chunk_loop, in_one_dtype
from myfla.utils.tensors import check_scale, check_size

__all__ = ["naive_chunk_kda", "naive_recurrent_kda"]


def naive_recurrent_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Token by token.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``, HV a multiple of H.
        g: ``[B, T, HV, K]`` log decay.
        beta: ``[B, T, HV]`` write strength.
        scale: factor on q, ``K ** -0.5`` by default.
        initial_state: ``[B, HV, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype and the final state ``[B, HV, K, V]`` or None; float32, or float64 for float64
        input.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> naive_recurrent_kda(x, x, 3 * x, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1))[0].item()
        3.0
    """
    x, scale, state = _prepared("naive_recurrent_kda", q, k, v, g, beta, scale, initial_state)
    o, state = delta_loop(x[0], x[1], x[2], x[3], x[4], scale, state)
    return o.to(v.dtype), state if output_final_state else None


def naive_chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Chunk by chunk (`myfla.ops.common.naive`).

    Args:
        q, k, v, g, beta, scale, initial_state, output_final_state: as `naive_recurrent_kda`.
        chunk_size: tokens in a chunk; any T.

    Returns:
        as `naive_recurrent_kda`.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> naive_chunk_kda(x, x, 3 * x, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1))[0].item()
        3.0
    """
    x, scale, state = _prepared("naive_chunk_kda", q, k, v, g, beta, scale, initial_state)
    check_size("naive_chunk_kda", "chunk_size", chunk_size, 1)
    q, k, values, g, beta = x
    writes = beta.unsqueeze(-1) * k
    o, state = chunk_loop(q, writes, values, g, k, scale, state, chunk_size)
    return o.to(v.dtype), state if output_final_state else None


def _prepared(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor,
    scale: Optional[float], initial_state: Optional[torch.Tensor],
) -> Tuple[List[torch.Tensor], float, torch.Tensor]:
    """The tensors, each with all heads, in one dtype, the factor on q, and the first state, once everything fits."""
    check_shapes(who, q, k, v)
    check_per_token(who, "g", g, v, k.shape[3])
    check_per_token(who, "beta", beta, v)
    state_k_first(who, initial_state, k, v, q.shape[0], False)
    q, k = (t.repeat_interleave(v.shape[2] // t.shape[2], 2) for t in (q, k))
    x, state = in_one_dtype((q, k, v, g, beta), initial_state)
    return x, check_scale(who, scale, q.shape[3]), state

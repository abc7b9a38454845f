"""Linear attention with one decay for each head in its plainest form: the specification."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.naive import gla_loop
from myfla.ops.common.checks import check_member
from myfla.ops.common.naive import chunk_loop, decayed_products, in_one_dtype
from myfla.utils.tensors import check_scale, check_size

__all__ = ["naive_chunk_simple_gla", "naive_parallel_simple_gla", "naive_recurrent_simple_gla"]


def naive_recurrent_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = True,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- exp(g) S + k v^T;  o = scale S^T q``, token by token.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        g: ``[B, T, H]`` log decay.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[B, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_recurrent_simple_gla(x, x, 3 * x, 0 * x[..., 0])[0].flatten().tolist()
        [3.0, 6.0]
    """
    x, scale, state = _prepared("naive_recurrent_simple_gla", q, k, v, g, scale, initial_state)
    o, final = gla_loop(*x, scale, state)
    return o.to(q.dtype), final if output_final_state else None


def naive_chunk_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
    scale: Optional[float] = None,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The same chunk by chunk (`myfla.ops.common.naive`).

    Args:
        q, k, v, g, initial_state, output_final_state, scale: as `naive_recurrent_simple_gla`.
        chunk_size: tokens in a chunk; any T.

    Returns:
        as `naive_recurrent_simple_gla`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_chunk_simple_gla(x, x, 3 * x, 0 * x[..., 0])[0].flatten().tolist()
        [3.0, 6.0]
    """
    x, scale, state = _prepared("naive_chunk_simple_gla", q, k, v, g, scale, initial_state)
    check_size("naive_chunk_simple_gla", "chunk_size", chunk_size, 1)
    o, final = chunk_loop(*x, None, scale, state, chunk_size)
    return o.to(q.dtype), final if output_final_state else None


def naive_parallel_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor],
    scale: Optional[float] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """All tokens at once, with the matrix that makes outputs of values: ``A_ts = scale q_t^T k_s exp(c_t - c_s)``.

    Args:
        q, k, v, scale: as `naive_recurrent_simple_gla`.
        g: the same; None for no decay.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, and A ``[B, H, T, T]`` in float32 (float64 for float64 input).

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_parallel_simple_gla(x, x, 3 * x, None)[1].flatten().tolist()
        [1.0, 0.0, 1.0, 1.0]
    """
    g = q.new_zeros(q.shape[:3]) if g is None and isinstance(q, torch.Tensor) else g
    x, scale, _ = _prepared("naive_parallel_simple_gla", q, k, v, g, scale, None)
    queries, keys, values, c = (t.transpose(1, 2) for t in (*x[:3], x[3].cumsum(1).unsqueeze(-1)))
    A = scale * decayed_products(queries, keys, c, c, 0)
    return (A @ values).transpose(1, 2).to(q.dtype), A


def _prepared(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: Any, scale: Optional[float],
    initial_state: Optional[torch.Tensor],
) -> Tuple[Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], float, torch.Tensor]:  # fmt: skip
    """q, k, v and g in one dtype, the factor on q, and the first state, once everything fits."""
    check_member(who, q, k, v, {"g": (g, ())}, initial_state, None, grouped=False)
    (q, k, v, g), state = in_one_dtype((q, k, v, g), initial_state)
    return (q, k, v, g), check_scale(who, scale, q.shape[3]), state

"""Gated linear attention in its plainest form: the specification."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import gla_loop
from myfla.ops.common.checks import check_like, check_member
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["naive_recurrent_gla"]


def naive_recurrent_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gk: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- diag(exp(gk)) S + k v^T;  o = S^T q / sqrt(K)``, token by token.

    Args:
        q, k, gk: ``[B, T, H, K]``: queries, keys, log decay.
        v: ``[B, T, H, V]``.
        initial_state: ``[B, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_recurrent_gla(x, x, 3 * x, 0 * x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    who = "naive_recurrent_gla"
    check_member(who, q, k, v, {}, initial_state, None, grouped=False)
    check_like(who, "gk", gk, "k", k)
    dtype = accumulation_dtype(q, k, v, gk, initial_state)
    state = v.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=dtype)
    state = state if initial_state is None else initial_state.to(dtype)
    out_dtype = q.dtype
    q, k, v, gk = (x.to(dtype) for x in (q, k, v, gk))
    o, final = gla_loop(q, k, v, gk, q.shape[3] ** -0.5, state)
    return o.to(out_dtype), final if output_final_state else None

"""Gated linear attention in its plainest form: the specification."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import gla_loop
from myfla.ops.common.checks import check_like, check_member
from myfla.ops.common.naive import in_one_dtype

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
    x, state = in_one_dtype((q, k, v, gk), initial_state)
    o, final = gla_loop(x[0], x[1], x[2], x[3], q.shape[3] ** -0.5, state)
    return o.to(q.dtype), final if output_final_state else None

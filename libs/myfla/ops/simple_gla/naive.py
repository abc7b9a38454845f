"""Linear attention with one decay a head in its plainest form: the specification."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import gla_loop
from myfla.ops.common.member import check_member
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.tensors import check_scale

__all__ = ["naive_recurrent_simple_gla"]


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
    who = "naive_recurrent_simple_gla"
    check_member(who, q, k, v, {"g": (g, ())}, initial_state, None, grouped=False)
    dtype = accumulation_dtype(q, k, v, g, initial_state)
    state = v.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=dtype)
    state = state if initial_state is None else initial_state.to(dtype)
    scale, out_dtype = check_scale(who, scale, q.shape[3]), q.dtype
    q, k, v, g = (x.to(dtype) for x in (q, k, v, g))
    o, final = gla_loop(q, k, v, g, scale, state)
    return o.to(out_dtype), final if output_final_state else None

"""The gated delta product in its plainest form: the specification."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import product_loop
from myfla.ops._delta.sequences import each_sequence
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["naive_recurrent_gated_delta_product"]


def naive_recurrent_gated_delta_product(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor],
    beta: torch.Tensor,
    scale: float,
    cu_seqlens: Optional[torch.Tensor] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    num_householder: int = 1,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- exp(g) S;  for j in 1..n: S <- S + k_j (beta_j (v_j - S^T k_j))^T;  o = scale S^T q``, token by token.

    Args:
        q: ``[B, T, H, K]``.
        k: ``[B, n T, H, K]``.
        v: ``[B, n T, H, V]``.
        g: ``[B, T, H]`` log decay, or None.
        beta: ``[B, n T, H]`` write strength.
        scale: factor on q.
        cu_seqlens: ``[N + 1]`` offsets of tokens, for sequences packed in one row (B = 1).
        initial_state: ``[N, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.
        num_householder: n.

    Returns:
        o ``[B, T, H, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> naive_recurrent_gated_delta_product(x[:, :1], x, 3 * x, None, x[..., 0], 1.0, num_householder=2)[0].item()
        3.0
    """
    n, dtype = num_householder, accumulation_dtype(q, k, v, beta, initial_state)
    sequences = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    state = v.new_zeros(sequences, q.shape[2], q.shape[3], v.shape[3], dtype=dtype)
    state = state if initial_state is None else state + initial_state.to(dtype)
    g = beta.new_zeros(q.shape[:3]) if g is None else g
    by_token = [x.reshape(*q.shape[:2], n, *x.shape[2:]) for x in (k, v, beta)]
    x = [t.to(dtype) for t in (q, by_token[0], by_token[1], g, by_token[2])]

    def run(*given: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        q, k, v, g, beta, state = given
        return product_loop(q, k, v, g, beta, scale, state)

    o, state = each_sequence(run, x, state, cu_seqlens)
    return o.to(q.dtype), state if output_final_state else None

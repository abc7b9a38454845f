"""The delta rule in its plainest form: the specification. Tensors are ``[B, H, T, D]``, as in the official file."""

from typing import Optional, Tuple

import torch

from myfla.utils.dtypes import accumulation_dtype

__all__ = ["delta_rule_recurrence"]


def delta_rule_recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = True,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- S + k (beta (v - S^T k))^T;  o = S^T q / sqrt(K)``, token by token.

    Args:
        q, k: ``[B, H, T, K]``.
        v: ``[B, H, T, V]``.
        beta: ``[B, H, T]``, or ``[B, H, T, V]`` for a strength of each value channel.
        initial_state: ``[B, H, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, H, T, V]`` in q's dtype, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x = torch.ones(1, 1, 2, 1)
        >>> delta_rule_recurrence(x, x, 3 * x, x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    dtype = accumulation_dtype(q, k, v, beta, initial_state)
    queries, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    beta = beta if beta.dim() == 4 else beta[..., None]
    state = v.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    state = state if initial_state is None else state + initial_state.to(dtype)
    outputs = []
    for t in range(q.shape[2]):
        key = k[:, :, t, :, None]
        error = v[:, :, t, None] - (key * state).sum(-2, keepdim=True)
        state = state + key * (beta[:, :, t, None] * error)
        outputs.append((queries[:, :, t, :, None] * state).sum(-2) * q.shape[3] ** -0.5)
    o = torch.stack(outputs, dim=2) if outputs else torch.zeros_like(v)
    return o.to(q.dtype), state if output_final_state else None

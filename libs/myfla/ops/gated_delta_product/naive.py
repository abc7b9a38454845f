"""The gated delta product in its plainest form: the specification."""

from typing import List, Optional, Tuple

import torch

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
    if cu_seqlens is not None:
        outputs: List[torch.Tensor] = []
        finals: List[torch.Tensor] = []
        n, offsets = num_householder, cu_seqlens.tolist()
        for i, (start, end) in enumerate(zip(offsets[:-1], offsets[1:])):
            o, final = naive_recurrent_gated_delta_product(
                q[:, start:end], k[:, n * start : n * end], v[:, n * start : n * end],
                None if g is None else g[:, start:end], beta[:, n * start : n * end], scale, None,
                None if initial_state is None else initial_state[i : i + 1], True, n,
            )  # fmt: skip
            outputs.append(o)
            finals += [] if final is None else [final]
        return torch.cat(outputs, dim=1), torch.cat(finals) if output_final_state else None
    dtype = accumulation_dtype(q, k, v, beta, initial_state)
    queries, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    state = v.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    state = state if initial_state is None else state + initial_state.to(dtype)
    rows = []
    for t in range(q.shape[1]):
        if g is not None:
            state = state * g[:, t].to(dtype).exp()[..., None, None]
        for j in range(t * num_householder, (t + 1) * num_householder):
            key = k[:, j, :, :, None]
            error = v[:, j, :, None] - (key * state).sum(-2, keepdim=True)
            state = state + key * (beta[:, j, :, None, None] * error)
        rows.append((queries[:, t, :, :, None] * state).sum(-2) * scale)
    o = torch.stack(rows, dim=1) if rows else v.new_zeros(*q.shape[:3], v.shape[3])
    return o.to(q.dtype), state if output_final_state else None

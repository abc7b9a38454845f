"""The diagonal-plus-low-rank delta rule in its plainest form: the specification.

For every token, with the state ``S [K, V]`` of one head (RWKV-7 "Goose", arXiv 2503.14456, transposed)::

    S    <- diag(exp(gk_t)) S + b_t (a_t^T S)^T + k_t v_t^T        a reads the state before it decays
    o_t   = scale * S^T q_t

RWKV-7 is the case ``gk = w``, ``a = -kk``, ``b = kk * a``. These functions take ``[B, H, T, D]``, as the official
ones do; the fast forms take ``[B, T, H, D]``.
"""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import dplr_loop
from myfla.ops.common.naive import decayed_products, in_one_dtype
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["dplr_chunkwise", "dplr_recurrence"]


def dplr_recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    gk: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = True,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Token by token.

    Args:
        q, k, alpha, beta: ``[B, H, T, K]``; alpha and beta are the ``a`` and ``b`` of the equation. q is scaled by
            ``K ** -0.5``.
        v: ``[B, H, T, V]``.
        gk: ``[B, H, T, K]`` log decay.
        initial_state: ``[B, H, K, V]`` (or broadcastable), zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, H, T, V]`` in q's dtype, and the final state ``[B, H, K, V]`` in float32 (float64 for float64 input)
        or None.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> dplr_recurrence(x, x, 3 * x, x, x, 0 * x)[0].item()
        3.0
    """
    given = [t.transpose(1, 2) for t in (q, k, v, alpha, beta, gk)]
    x, state = in_one_dtype(given, initial_state, accumulation_dtype(q, k, v))
    o, state = dplr_loop(x[0], x[1], x[2], x[3], x[4], x[5], q.shape[-1] ** -0.5, state)
    return o.transpose(1, 2).to(q.dtype), state if output_final_state else None


def dplr_chunkwise(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    gk: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = True,
    chunk_size: int = 32,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Chunk by chunk, every step of the algebra on a separate line; every decay is a difference of log sums.

    With ``c_t`` the log decay summed from the chunk's start and ``<x, y>_ts = sum_d x_td y_sd exp(c_t - c_s)_d``,
    the reads ``u_t = a_t^T S_{t-1}`` of one chunk solve
    ``u_t = <a, b>_{t-1,s} u_s + <a, k>_{t-1,s} v_s + (a_t exp(c_{t-1}))^T S_0`` over ``s < t``.

    Args:
        q, k, v, alpha, beta, gk, initial_state, output_final_state: as `dplr_recurrence`.
        chunk_size: tokens in a chunk; any T.

    Returns:
        as `dplr_recurrence`, with o in float32 (float64 for float64 input).

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> dplr_chunkwise(x, x, 3 * x, x, x, 0 * x)[0].item()
        3.0
    """
    given = [t.transpose(1, 2) for t in (q, k, v, alpha, beta, gk)]
    x, state = in_one_dtype(given, initial_state, accumulation_dtype(q, k, v))
    q, k, v, alpha, beta, gk = (t.transpose(1, 2) for t in (x[0] * q.shape[-1] ** -0.5, *x[1:]))
    outputs = []
    for start in range(0, q.shape[2], chunk_size):
        qc, kc, vc, ac, bc, gc = (x[:, :, start : start + chunk_size] for x in (q, k, v, alpha, beta, gk))
        c = gc.cumsum(-2)
        before = torch.cat([torch.zeros_like(c[:, :, :1]), c[:, :, :-1]], dim=-2)
        a_b, a_k = decayed_products(ac, bc, before, c, -1), decayed_products(ac, kc, before, c, -1)
        q_b, q_k = decayed_products(qc, bc, c, c, 0), decayed_products(qc, kc, c, c, 0)
        right = a_k @ vc + (ac * before.exp()) @ state
        u = torch.linalg.solve_triangular(-a_b, right, upper=False, unitriangular=True)
        outputs.append((qc * c.exp()) @ state + q_k @ vc + q_b @ u)
        left = (c[:, :, -1:] - c).exp()
        state = state * c[:, :, -1, :, None].exp()
        state = state + (kc * left).transpose(-1, -2) @ vc + (bc * left).transpose(-1, -2) @ u
    o = torch.cat(outputs, dim=2) if outputs else torch.zeros_like(v)
    return o, state if output_final_state else None

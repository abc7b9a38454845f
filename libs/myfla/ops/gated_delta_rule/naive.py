"""The gated delta rule in its plainest form: the specification.

For every token, with the state ``S [K, V]`` of one head (Gated DeltaNet, arXiv 2412.06464, eq. 10)::

    S     <- exp(g_t) S                          forget
    error  = v_t - S^T k_t                       what the memory gets wrong about k_t
    S     <- S + k_t (beta_t error)^T            correct it
    o_t    = scale * S^T q_t                     read
"""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import delta_loop
from myfla.ops.common.checks import check_per_token, check_shapes
from myfla.ops.common.naive import chunk_loop, in_one_dtype
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_scale, check_size, check_tensor

__all__ = ["naive_chunk_gated_delta_rule", "naive_recurrent_gated_delta_rule"]


def naive_recurrent_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    g: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Token by token. Mind the official order of arguments: ``beta`` before ``g``.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        beta: ``[B, T, H]`` write strength.
        g: ``[B, T, H]`` log decay.
        scale: factor on q, ``K ** -0.5`` by default.
        initial_state: ``[B, H, K, V]`` (or broadcastable), zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        o ``[B, T, H, V]`` and the final state ``[B, H, K, V]`` or None; float32, or float64 for float64 input.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> naive_recurrent_gated_delta_rule(x, x, x, beta=torch.ones(1, 1, 1), g=torch.zeros(1, 1, 1))[0].item()
        1.0
    """
    scale = _checked("naive_recurrent_gated_delta_rule", q, k, v, beta, g, scale, initial_state)
    (q, k, v, beta, g), state = in_one_dtype((q, k, v, beta, g), initial_state, accumulation_dtype(q, k, v))
    o, state = delta_loop(q, k, v, g, beta, scale, state)
    return o, state if output_final_state else None


def naive_chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The same chunk by chunk (`myfla.ops.common.naive`). Mind the order: ``g`` before ``beta``.

    Args:
        q, k, v, g, beta, scale, initial_state, output_final_state: as `naive_recurrent_gated_delta_rule`.
        chunk_size: tokens in a chunk, C; any T.

    Returns:
        as `naive_recurrent_gated_delta_rule`.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> naive_chunk_gated_delta_rule(x, x, x, g=torch.zeros(1, 1, 1), beta=torch.ones(1, 1, 1))[0].item()
        1.0
    """
    scale = _checked("naive_chunk_gated_delta_rule", q, k, v, beta, g, scale, initial_state)
    check_size("naive_chunk_gated_delta_rule", "chunk_size", chunk_size, 1)
    (q, k, v, beta, g), state = in_one_dtype((q, k, v, beta, g), initial_state, accumulation_dtype(q, k, v))
    o, state = chunk_loop(q, beta.unsqueeze(-1) * k, v, g, k, scale, state, chunk_size)
    return o, state if output_final_state else None


def _checked(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, g: torch.Tensor,
    scale: Optional[float], initial_state: Optional[torch.Tensor],
) -> float:
    """The factor on q, once everything fits."""
    check_shapes(who, q, k, v)
    if v.shape[2] != q.shape[2]:
        raise value_error(who, "v", f"must have the heads of q, H={q.shape[2]}", v.shape[2])
    check_per_token(who, "beta", beta, v)
    check_per_token(who, "g", g, v)
    if initial_state is not None:
        check_tensor(who, "initial_state", initial_state, v, "v")
        want = v.shape[0], v.shape[2], k.shape[3], v.shape[3]
        short = initial_state.dim() > 4 or any(
            a not in (1, b) for a, b in zip(reversed(initial_state.shape), reversed(want)))
        if short or not initial_state.is_floating_point():
            got = f"{initial_state.dtype} {tuple(initial_state.shape)}"
            raise value_error(who, "initial_state", f"must be a floating point tensor {want}, or broadcast to it", got)
    return check_scale(who, scale, q.shape[3])

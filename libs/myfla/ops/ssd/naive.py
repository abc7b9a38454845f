"""The state space dual in its plainest form: the specification."""

import math
from typing import Optional, Tuple

import torch

from myfla.ops._delta.naive import gla_loop
from myfla.ops.common.checks import state_k_first
from myfla.ops.ssd.inputs import check_ssd

__all__ = ["naive_recurrent_ssd"]


def naive_recurrent_ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: Optional[torch.Tensor] = None,
    z: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    dt_softplus: bool = False,
    dt_limit: Tuple[float, float] = (0.0, math.inf),
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- exp(dt A) S + B (dt x)^T;  y = (S^T C + D x) silu(z)``, token by token.

    Args:
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit: as `chunk_ssd`.
        initial_state: ``[B, HV, K, V]``, zeros by default.
        output_final_state: return the state after the last token.

    Returns:
        y ``[B, T, HV, V]`` in the dtype of x, and the final state in float32 (float64 for float64 input) or None.

    Example:
        >>> x, decay = torch.ones(1, 2, 1, 1), torch.zeros(1)
        >>> naive_recurrent_ssd(3 * x, x[..., 0], decay, x, x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    who = "naive_recurrent_ssd"
    ssd = check_ssd(who, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state)
    state = state_k_first(who, initial_state, B, x, x.shape[0], False)
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3])
    q, k, v, g = ssd.as_gla()
    q, k = (t.to(ssd.dtype).repeat_interleave(x.shape[2] // t.shape[2], dim=2) for t in (q, k))
    o, final = gla_loop(q, k, v, g, 1.0, state.to(ssd.dtype))
    return ssd.finish(o), final if output_final_state else None

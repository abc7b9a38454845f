"""`fused_recurrent_ssd`: the form for decoding."""

import math
from typing import Optional, Tuple

import torch

from myfla.ops.ssd.inputs import check_ssd, run_ssd

__all__ = ["fused_recurrent_ssd"]

NAME = "fused_recurrent_ssd"


def fused_recurrent_ssd(
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
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The rule of `chunk_ssd`, one token after another; continues from a state, and trains.

    Args:
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit: as for `chunk_ssd`.
        initial_state, output_final_state, state_v_first, cu_seqlens, backend: as for `chunk_ssd`.
        inplace_final_state: write the final state over ``initial_state``, and return that; only without autograd.

    Returns:
        y ``[B, T, HV, V]`` in the dtype of x; the final states in float32 (or float64), or None.

    Raises:
        ValueError, BackendError: as for `chunk_ssd`.

    Example:
        >>> x, decay = torch.ones(1, 2, 1, 1), torch.zeros(1)
        >>> fused_recurrent_ssd(3 * x, x[..., 0], decay, x, x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    ssd = check_ssd(NAME, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state)
    return run_ssd(
        NAME, "recurrent", ssd, initial_state, cu_seqlens, state_v_first=state_v_first,
        output_final_state=output_final_state, backend=backend, inplace=inplace_final_state,
        given=(x, dt, A, B, C, D, z, dt_bias),
    )  # fmt: skip

"""`fused_recurrent_comba`: the form for decoding."""

from typing import Optional, Tuple

import torch

from myfla.ops.comba.as_dplr import run_comba

__all__ = ["fused_recurrent_comba"]

NAME = "fused_recurrent_comba"


def fused_recurrent_comba(
    q: torch.Tensor,
    k: torch.Tensor,
    p: Optional[torch.Tensor],
    v: torch.Tensor,
    g: torch.Tensor,
    beta: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The rule of `chunk_comba`, one token after another; continues from a state, and trains.

    Args:
        q, k, p, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens, backend: as
            there; p comes before v here, as in fla.
        inplace_final_state: write the final state over ``initial_state``; only without autograd.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError, BackendError: as for `chunk_comba`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_recurrent_comba(x, x, x, 3 * x, 0 * x[..., 0], x[..., 0])[0].flatten().tolist()
        [3.0, 3.0]
    """
    return run_comba(
        NAME, "recurrent", q, k, v, p, g, beta, initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, l2norm_qk=use_qk_l2norm_in_kernel, backend=backend,
        inplace=inplace_final_state,
    )  # fmt: skip

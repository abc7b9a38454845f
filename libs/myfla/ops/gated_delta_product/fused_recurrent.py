"""`fused_recurrent_gated_delta_product`: the form for decoding. The official library has it inside its layer."""

from typing import Optional, Tuple

import torch

from myfla.ops.gated_delta_product.steps import run_steps

__all__ = ["fused_recurrent_gated_delta_product"]

NAME = "fused_recurrent_gated_delta_product"


def fused_recurrent_gated_delta_product(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor],
    beta: torch.Tensor,
    num_householder: int,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The rule of `chunk_gated_delta_product`, one step after another; continues from a state, and trains.

    Args:
        q, k, v, g, beta, num_householder, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        cu_seqlens, backend: as there.
        inplace_final_state: write the final state over ``initial_state``; only without autograd.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError, BackendError: as there.

    Example:
        >>> q, k, v = torch.ones(1, 3, 1, 1), torch.ones(1, 6, 1, 1), torch.ones(1, 6, 1, 2)
        >>> fused_recurrent_gated_delta_product(q, k, v, None, torch.ones(1, 6, 1), num_householder=2)[0].shape
        torch.Size([1, 3, 1, 2])
    """
    return run_steps(
        NAME, "recurrent", q, k, v, g, beta, num_householder, initial_state, cu_seqlens,
        scale=scale, output_final_state=output_final_state, l2norm=use_qk_l2norm_in_kernel,
        inplace=inplace_final_state, backend=backend,
    )  # fmt: skip

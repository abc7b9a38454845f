"""`fused_recurrent_gdn2`: the form for decoding."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.ops.gdn2.as_dplr import prepare

__all__ = ["fused_recurrent_gdn2"]

NAME = "fused_recurrent_gdn2"
KEYWORDS = (
    "q", "k", "v", "g", "b", "w", "A_log", "dt_bias", "scale", "initial_state", "output_final_state",
    "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "lower_bound", "state_v_first", "cu_seqlens",
    "inplace_final_state", "backend",
)  # fmt: skip


def fused_recurrent_gdn2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    lower_bound: Optional[float] = None,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The rule of `chunk_gdn2`, one token after another; continues from a state, and trains.

    Args:
        q, k, v, g, b, w, A_log, dt_bias, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, lower_bound, state_v_first, cu_seqlens, backend: as for `chunk_gdn2`.
        inplace_final_state: write the final state over ``initial_state``; only without autograd.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``).

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError, BackendError, TypeError: as for `chunk_gdn2`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_recurrent_gdn2(x, x, 3 * x, 0 * x, x, x)[0].flatten().tolist()
        [3.0, 3.0]
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    options = (
        scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel, lower_bound, inplace_final_state,
        state_v_first, backend,
    )  # fmt: skip
    key = call_key(NAME, options, q, k, v, g, b, w, initial_state, A_log, dt_bias, cu_seqlens)
    plan = find_plan(key)
    x, dtype = prepare(
        NAME, q, k, v, g, b, w, initial_state, cu_seqlens, state_v_first, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, A_log, dt_bias, lower_bound, checked=plan is not None,
    )  # fmt: skip
    if plan is not None:
        return plan(x, None, initial_state, cu_seqlens)
    return run_rule(
        NAME, DPLR, "recurrent", x, initial_state, cu_seqlens, scale=scale, output_final_state=output_final_state,
        backend=backend, out_dtype=dtype, inplace=inplace_final_state, state_v_first=state_v_first, key=key,
    )  # fmt: skip

"""`fused_recurrent_delta_rule`: the form for decoding."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_member
from myfla.ops.common.run_rule import run_rule

__all__ = ["fused_recurrent_delta_rule"]

NAME = "fused_recurrent_delta_rule"


def fused_recurrent_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
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
    """The delta rule of `chunk_delta_rule`, one token after another; continues from a state, and trains.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``.
        beta: ``[B, T, HV]``, or ``[B, T, HV, V]`` for a strength of each value channel; ones by default.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q and k to length one first.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        inplace_final_state: write the final state over ``initial_state``; only without autograd.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> q = k = torch.ones(1, 3, 1, 1); v = torch.ones(1, 3, 1, 2)
        >>> fused_recurrent_delta_rule(q, k, v, beta=torch.ones(1, 3, 1))[0].shape
        torch.Size([1, 3, 1, 2])
    """
    options = scale, output_final_state, use_qk_l2norm_in_kernel, inplace_final_state, backend
    key = None if beta is None else call_key(NAME, options, q, k, v, beta, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, None, beta), None, initial_state, cu_seqlens)
    per_token = {}
    if beta is not None:
        per_token["beta"] = (beta, (v.shape[3],) if getattr(beta, "dim", int)() == 4 else ())
    check_member(NAME, q, k, v, per_token, initial_state, cu_seqlens)
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    return run_rule(
        NAME, GATED_DELTA, "recurrent", (q, k, v, None, beta), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=q.dtype, l2norm=use_qk_l2norm_in_kernel,
        inplace=inplace_final_state, key=key,
    )  # fmt: skip

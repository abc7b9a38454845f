"""`chunk_delta_rule`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_member, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["chunk_delta_rule", "fused_chunk_delta_rule"]

NAME = "chunk_delta_rule"
KEYWORDS = (
    "q", "k", "v", "beta", "scale", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel", "cu_seqlens",
    "cu_seqlens_cpu", "chunk_size", "backend",
)  # fmt: skip


def chunk_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    *,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The delta rule, many tokens at a time: `chunk_gated_delta_rule` without decay.

    ``S <- S + k (beta (v - S^T k))^T;  o = scale S^T q`` for every token (DeltaNet, arXiv 2406.06484). Sums and states
    are float32, or float64 if any input is. All dtypes are accepted, also float32, which fla does not accept.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        beta: ``[B, T, HV]`` write strength.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q and k to length one first.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu: official name; changes nothing here.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.
        **legacy: ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> q = k = torch.ones(1, 3, 1, 1); v = torch.ones(1, 3, 1, 2)
        >>> chunk_delta_rule(q, k, v, beta=torch.ones(1, 3, 1))[0].shape
        torch.Size([1, 3, 1, 2])
    """
    take_legacy_keywords(NAME, legacy, False, KEYWORDS)
    options = scale, output_final_state, use_qk_l2norm_in_kernel, chunk_size, backend
    key = call_key(NAME, options, q, k, v, beta, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is None:
        check_member(NAME, q, k, v, {"beta": (beta, ())}, initial_state, cu_seqlens)
    g = torch.zeros(v.shape[:3], dtype=accumulation_dtype(q, k, v, beta, initial_state), device=v.device)
    if plan is not None:
        return plan((q, k, v, g, beta), None, initial_state, cu_seqlens)
    return run_rule(
        NAME, GATED_DELTA, "chunk", (q, k, v, g, beta), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=q.dtype, l2norm=use_qk_l2norm_in_kernel,
        chunk_size=chunk_size, key=key,
    )  # fmt: skip


fused_chunk_delta_rule = chunk_delta_rule  # the official name of a kernel that is gone

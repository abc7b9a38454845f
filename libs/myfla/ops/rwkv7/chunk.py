"""`chunk_rwkv7`: RWKV-7's time mixing, many tokens at a time."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.run_rule import run_rule
from myfla.ops.generalized_delta_rule.dplr.inputs import check_inputs, check_options

__all__ = ["chunk_rwkv7"]

NAME = "chunk_rwkv7"


def chunk_rwkv7(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    safe_gate: bool = False,
    chunk_size: Optional[int] = None,
    disable_recompute: bool = False,
    cp_context: Any = None,
    lower_bound: Optional[float] = None,
    *,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``S <- diag(exp(w)) S + b (a^T S)^T + k v^T;  o = scale S^T r``: `chunk_dplr_delta_rule` under RWKV-7's names.

    The layer calls it with ``a = -kk`` and ``b = kk * a``. Safe for every log decay; see there for what bounds it.

    Args:
        r, k, a, b: ``[B, T, H, K]``.
        w: ``[B, T, H, K]`` log decay.
        v: ``[B, T, H, V]``.
        scale: factor on r; None for ``K ** -0.5``.
        initial_state, output_final_state, cu_seqlens, cu_seqlens_cpu, safe_gate, chunk_size, disable_recompute,
            cp_context, lower_bound, backend: as `chunk_dplr_delta_rule`.

    Returns:
        o ``[B, T, H, V]`` in r's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x = torch.ones(1, 3, 1, 2)
        >>> chunk_rwkv7(x, 0 * x, x, x, 0 * x, x)[0][0, :, 0, 0].tolist()
        [2.0, 4.0, 6.0]
    """
    options = scale, output_final_state, cp_context, chunk_size, lower_bound, b is k, backend
    key = call_key(NAME, options, r, w, k, v, a, b, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((r, k, v, a, b, w), None, initial_state, cu_seqlens)
    rows = check_inputs(NAME, {"r": r, "w": w, "k": k, "a": a, "b": b}, v, initial_state, cu_seqlens)
    check_options(NAME, cp_context, lower_bound)
    return run_rule(
        NAME, DPLR, "chunk", (r, k, v, a, b, w), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=r.dtype, sequences=rows,
        chunk_size=chunk_size, lower_bound=lower_bound, key=key,
    )  # fmt: skip

"""`chunk_dplr_delta_rule`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.run_rule import run_rule
from myfla.ops.generalized_delta_rule.dplr.inputs import check_inputs, check_options
from myfla.utils.errors import refuse_unknown, value_error

__all__ = ["chunk_dplr_delta_rule"]

NAME = "chunk_dplr_delta_rule"
KEYWORDS = (
    "q", "k", "v", "a", "b", "gk", "scale", "initial_state", "output_final_state", "cu_seqlens", "cu_seqlens_cpu",
    "safe_gate", "chunk_size", "disable_recompute", "cp_context", "lower_bound", "backend",
)  # fmt: skip


def chunk_dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: Optional[float] = None,
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
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The delta rule with a diagonal-plus-low-rank transition, many tokens at a time.

    ``S <- diag(exp(gk)) S + b (a^T S)^T + k v^T;  o = scale S^T q`` for every token; a reads the state before it
    decays (RWKV-7, arXiv 2503.14456). Sums and states are float32, or float64 if any input is.

    Every log decay is allowed, down to -inf. The fast method is exact to rounding as long as the sum of log decays over
    one chunk stays within 40 for each channel (the RWKV-7 layer stays below 39 at the largest chunk, 64); for other
    chunks and heads a method is used that is exact for all decays and takes about four times as long. The choice is
    made for each chunk and head; dense bfloat16 batches on a GPU use one method for all decays (`half_levels`). A NaN
    reaches back at most to the start of its chunk, and never into another sequence.

    Args:
        q, k, a, b: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        gk: ``[B, T, H, K]`` log decay of each key channel, at or below zero.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, H, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu, safe_gate, disable_recompute: official names; they choose between kernels there and change
            nothing here.
        chunk_size: tokens in a chunk, 16, 32 or 64 as in fla; chosen by K and T if not given. Changes rounding
            and speed only.
        cp_context: must be None; there is no context parallelism.
        lower_bound: a promise that ``lower_bound <= gk <= 0``, as in fla; a negative number. It is optional. With
            bfloat16 on a GPU it saves time, but results are wrong if a log decay is below it.
        backend: which code computes the result, see `myfla.backends`.
        **legacy: ``head_first=False``.

    Returns:
        o ``[B, T, H, V]`` in q's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> x = torch.ones(1, 3, 1, 2)
        >>> o, state = chunk_dplr_delta_rule(x, x, x, 0 * x, x, 0 * x, scale=1.0, output_final_state=True)
        >>> o[0, :, 0, 0].tolist(), state.shape
        ([2.0, 4.0, 6.0], torch.Size([1, 1, 2, 2]))
    """
    refuse_unknown(NAME, legacy, KEYWORDS, inert=("head_first",))
    if legacy.get("head_first"):
        raise value_error(NAME, "head_first", "is not supported", True, "pass tensors as [B, T, H, D]")
    options = scale, output_final_state, cp_context, chunk_size, lower_bound, b is k, backend
    key = call_key(NAME, options, q, k, v, a, b, gk, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, a, b, gk), None, initial_state, cu_seqlens)
    rows = check_inputs(NAME, {"q": q, "k": k, "a": a, "b": b, "gk": gk}, v, initial_state, cu_seqlens)
    check_options(NAME, cp_context, lower_bound)
    return run_rule(
        NAME, DPLR, "chunk", (q, k, v, a, b, gk), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=q.dtype, sequences=rows,
        chunk_size=chunk_size, lower_bound=lower_bound, key=key,
    )  # fmt: skip

"""`chunk_gla`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gla import GLA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_member, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule

__all__ = ["chunk_gla", "fused_chunk_gla"]

NAME = "chunk_gla"
KEYWORDS = (
    "q", "k", "v", "g", "scale", "initial_state", "output_final_state", "state_v_first", "cu_seqlens", "cu_seqlens_cpu",
    "chunk_size", "backend",
)  # fmt: skip


def chunk_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    *,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Gated linear attention, many tokens at a time.

    ``S <- diag(exp(g)) S + k v^T;  o = scale S^T q`` for every token (arXiv 2312.06635). Sums and states are
    float32, or float64 if any input is. Safe for every log decay from 0 to -inf.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        g: ``[B, T, HV, K]`` log decay of each key channel.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        state_v_first: states, in and out, are ``[N, HV, V, K]``.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu: official name; changes nothing here.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``), ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> chunk_gla(x, x, 3 * x, 0 * x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    options = scale, output_final_state, state_v_first, chunk_size, backend
    key = call_key(NAME, options, q, k, v, g, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g), None, initial_state, cu_seqlens)
    size = k.shape[-1] if isinstance(k, torch.Tensor) and k.dim() else 0
    check_member(NAME, q, k, v, {"g": (g, (size,))}, initial_state, cu_seqlens, state_v_first)
    return run_rule(
        NAME, GLA, "chunk", (q, k, v, g), initial_state, cu_seqlens, scale=scale, output_final_state=output_final_state,
        backend=backend, out_dtype=v.dtype, chunk_size=chunk_size, state_v_first=state_v_first, key=key,
    )  # fmt: skip


fused_chunk_gla = chunk_gla  # the official name of a kernel that is gone

"""`chunk_simple_gla`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gla import SIMPLE_GLA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_member, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.ops.simple_gla.decays import given_decays

__all__ = ["chunk_simple_gla"]

NAME = "chunk_simple_gla"
KEYWORDS = (
    "q", "k", "v", "g", "g_gamma", "scale", "initial_state", "output_final_state", "state_v_first", "cu_seqlens",
    "cu_seqlens_cpu", "chunk_size", "backend",
)  # fmt: skip


def chunk_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor] = None,
    g_gamma: Optional[torch.Tensor] = None,
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
    """Linear attention with one decay for each head, many tokens at a time.

    ``S <- exp(g) S + k v^T;  o = scale S^T q`` for every token (RetNet, arXiv 2307.08621; Mamba-2,
    arXiv 2405.21060). Sums and states are float32, or float64 if any input is. Safe for every log decay from 0 to -inf.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        g: ``[B, T, HV]`` log decay; none by default.
        g_gamma: ``[HV]`` log decay of every token, in addition to g.
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
        >>> chunk_simple_gla(x, x, 3 * x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    key = None
    if g is not None and g_gamma is None:
        options = scale, output_final_state, state_v_first, chunk_size, backend
        key = call_key(NAME, options, q, k, v, g, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g), None, initial_state, cu_seqlens)
    g = given_decays(NAME, v, g, g_gamma)
    check_member(NAME, q, k, v, {"g": (g, ())}, initial_state, cu_seqlens, state_v_first)
    return run_rule(
        NAME, SIMPLE_GLA, "chunk", (q, k, v, g), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, chunk_size=chunk_size,
        state_v_first=state_v_first, key=key,
    )  # fmt: skip

"""`fused_recurrent_simple_gla`: the form for decoding."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gla import SIMPLE_GLA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_member, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.ops.simple_gla.decays import given_decays

__all__ = ["fused_recurrent_simple_gla"]

NAME = "fused_recurrent_simple_gla"
KEYWORDS = (
    "q", "k", "v", "g", "g_gamma", "scale", "initial_state", "output_final_state", "reverse", "state_v_first",
    "cu_seqlens", "inplace_final_state", "backend",
)  # fmt: skip


def fused_recurrent_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor] = None,
    g_gamma: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The rule of `chunk_simple_gla`, one token after another; continues from a state, and trains.

    Args:
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, backend: as for
            `chunk_simple_gla`.
        g, g_gamma: as for `chunk_simple_gla`.
        reverse: process every sequence from its last token to its first.
        inplace_final_state: write the final state over ``initial_state``, and return that; only without autograd.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``), ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError, BackendError, TypeError: as for `chunk_simple_gla`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_recurrent_simple_gla(x, x, 3 * x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    key = None
    if g is not None and g_gamma is None:
        options = scale, output_final_state, reverse, inplace_final_state, state_v_first, backend
        key = call_key(NAME, options, q, k, v, g, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g), None, initial_state, cu_seqlens)
    g = given_decays(NAME, v, g, g_gamma)
    check_member(NAME, q, k, v, {"g": (g, ())}, initial_state, cu_seqlens, state_v_first)
    return run_rule(
        NAME, SIMPLE_GLA, "recurrent", (q, k, v, g), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, inplace=inplace_final_state,
        state_v_first=state_v_first, reverse=reverse, key=key,
    )  # fmt: skip

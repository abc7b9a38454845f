"""`fused_recurrent_gla`: the form for decoding."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gla import GLA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_member, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["fused_recurrent_gla"]

NAME = "fused_recurrent_gla"
KEYWORDS = (
    "q", "k", "v", "gk", "gv", "scale", "initial_state", "output_final_state", "reverse", "state_v_first", "cu_seqlens",
    "inplace_final_state", "backend",
)  # fmt: skip


def fused_recurrent_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    gk: Optional[torch.Tensor] = None,
    gv: Optional[torch.Tensor] = None,
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
    """The rule of `chunk_gla`, one token after another; continues from a state, and trains.

    Args:
        q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens, backend: as for `chunk_gla`.
        gk: ``[B, T, HV, K]`` log decay of each key channel; none by default.
        gv: ``[B, T, HV, V]`` log decay of each value channel; none by default.
        reverse: process every sequence from its last token to its first.
        inplace_final_state: write the final state over ``initial_state``, and return that; only without autograd.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``), ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError, BackendError, TypeError: as for `chunk_gla`.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_recurrent_gla(x, x, 3 * x)[0].flatten().tolist()
        [3.0, 6.0]
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    key = None
    if gk is not None and gv is None:
        options = scale, output_final_state, reverse, inplace_final_state, state_v_first, backend
        key = call_key(NAME, options, q, k, v, gk, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, gk), None, initial_state, cu_seqlens)
    sizes = [x.shape[-1] if isinstance(x, torch.Tensor) and x.dim() else 0 for x in (k, v)]
    given = {name: (x, (size,)) for name, x, size in zip(("gk", "gv"), (gk, gv), sizes) if x is not None}
    check_member(NAME, q, k, v, given, initial_state, cu_seqlens, state_v_first)
    wide = accumulation_dtype(q, k, v, gv, initial_state)
    g = torch.zeros(*v.shape[:3], k.shape[3], dtype=wide, device=v.device) if gk is None else gk
    return run_rule(
        NAME, GLA, "recurrent", (q, k, v, g), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, inplace=inplace_final_state,
        state_v_first=state_v_first, reverse=reverse, channel_decays=() if gv is None else (gv,), key=key,
    )  # fmt: skip

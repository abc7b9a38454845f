"""`fused_recurrent_dplr_delta_rule`: token by token, for decoding and short inputs."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.run_rule import run_rule
from myfla.ops.generalized_delta_rule.dplr.inputs import check_inputs

__all__ = ["fused_recurrent_dplr_delta_rule"]

NAME = "fused_recurrent_dplr_delta_rule"


def fused_recurrent_dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The delta rule of `chunk_dplr_delta_rule`, one token after another; continues from a state, and trains.

    Every token costs the same few operations on tensors of the same shape, so a sequence split into any number of
    calls gives the same bits, and every log decay is safe. The backward runs the chunk form.

    Args:
        q, k, a, b: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        gk: ``[B, T, H, K]`` log decay of each key channel.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, H, K, V]``, zeros by default. Never written, unless ``inplace_final_state`` asks for it.
        output_final_state: also return the state after the last token of each sequence.
        reverse: walk every sequence from its last token to its first.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        inplace_final_state: write the final state into ``initial_state``, which must be contiguous and float32
            (float64), and return that. For decoding, where nothing else uses the old state; not with autograd.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        o ``[B, T, H, V]`` in v's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape or offset that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x = torch.ones(1, 1, 1, 1)
        >>> o, state = fused_recurrent_dplr_delta_rule(x, x, x, 0 * x, x, 0 * x, output_final_state=True)
        >>> fused_recurrent_dplr_delta_rule(x, x, x, 0 * x, x, 0 * x, initial_state=state)[0].item()
        2.0
    """
    options = scale, output_final_state, reverse, inplace_final_state, b is k, backend
    key = call_key(NAME, options, q, k, v, a, b, gk, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, a, b, gk), None, initial_state, cu_seqlens)
    rows = check_inputs(NAME, {"q": q, "k": k, "a": a, "b": b, "gk": gk}, v, initial_state, cu_seqlens)
    return run_rule(
        NAME, DPLR, "recurrent", (q, k, v, a, b, gk), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, sequences=rows,
        inplace=inplace_final_state, reverse=reverse, key=key,
    )  # fmt: skip

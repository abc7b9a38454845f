"""RWKV-7's time mixing token by token, for decoding and short inputs."""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.run_rule import run_rule
from myfla.ops.generalized_delta_rule.dplr.inputs import check_inputs
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["fused_mul_recurrent_rwkv7", "fused_recurrent_rwkv7"]


def fused_recurrent_rwkv7(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = True,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`fused_recurrent_dplr_delta_rule` under RWKV-7's names; what `chunk_rwkv7` computes. Trains.

    Note the official defaults: ``scale`` is ``K ** -0.5`` here, and the final state is returned.

    Args:
        r, k, a, b: ``[B, T, H, K]``.
        w: ``[B, T, H, K]`` log decay.
        v: ``[B, T, H, V]``.
        scale: factor on r; ``K ** -0.5`` by default.
        initial_state: ``[N, H, K, V]``, zeros by default.
        output_final_state: also return the final state.
        cu_seqlens: ``[N + 1]`` offsets of packed sequences.
        inplace_final_state: as `fused_recurrent_dplr_delta_rule`.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        o ``[B, T, H, V]`` in v's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape or offset that does not fit.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_recurrent_rwkv7(x, 0 * x, x, x, 0 * x, x)[1].item()
        2.0
    """
    name, options = "fused_recurrent_rwkv7", (scale, output_final_state, inplace_final_state, b is k, backend)
    key = call_key(name, options, r, w, k, v, a, b, initial_state, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((r, k, v, a, b, w), None, initial_state, cu_seqlens)
    rows = check_inputs(name, {"r": r, "w": w, "k": k, "a": a, "b": b}, v, initial_state, cu_seqlens)
    return run_rule(
        name, DPLR, "recurrent", (r, k, v, a, b, w), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, sequences=rows,
        inplace=inplace_final_state, key=key,
    )  # fmt: skip


def fused_mul_recurrent_rwkv7(
    r: torch.Tensor,
    w: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kk: torch.Tensor,
    a: torch.Tensor,
    scale: Optional[float] = 1.0,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`fused_recurrent_rwkv7` with ``a = -kk`` and ``b = kk * a`` made inside. Trains.

    Args:
        r, k: ``[B, T, H, K]``.
        w: ``[B, T, H, K]`` log decay.
        v: ``[B, T, H, V]``.
        kk: ``[B, T, H, K]`` key to be replaced, of length one.
        a: ``[B, T, H, K]`` in-context learning rate.
        scale: factor on r; None for ``K ** -0.5``.
        initial_state: ``[N, H, K, V]``, zeros by default.
        output_final_state: also return the final state.
        reverse: process every sequence from its last token to its first.
        cu_seqlens: ``[N + 1]`` offsets of packed sequences.
        inplace_final_state: as `fused_recurrent_dplr_delta_rule`.
        backend: which code computes the result, see `myfla.backends`.

    Returns:
        o ``[B, T, H, V]`` in v's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape or offset that does not fit.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> fused_mul_recurrent_rwkv7(x, 0 * x, x, x, x, x)[0].flatten().tolist()
        [1.0, 1.0]
    """
    name, options = "fused_mul_recurrent_rwkv7", (scale, output_final_state, reverse, inplace_final_state, backend)
    key = call_key(name, options, r, w, k, v, kk, a, initial_state, cu_seqlens)
    plan, rows = find_plan(key), None
    if plan is None:
        rows = check_inputs(name, {"r": r, "w": w, "k": k, "kk": kk, "a": a}, v, initial_state, cu_seqlens)
    wide = accumulation_dtype(r, w, k, v, kk, a, initial_state)  # what feeds the state is not rounded to half precision
    x = r, k, v, -kk, kk.to(wide) * a.to(wide), w
    if plan is not None:
        return plan(x, None, initial_state, cu_seqlens)
    return run_rule(
        name, DPLR, "recurrent", x, initial_state, cu_seqlens, scale=scale, output_final_state=output_final_state,
        backend=backend, out_dtype=v.dtype, sequences=rows, inplace=inplace_final_state, reverse=reverse, key=key,
    )  # fmt: skip

"""Gated DeltaNet 2's rule as the delta rule with a diagonal-plus-low-rank transition.

``diag(e^g) S + k (w * v - (diag(e^g) S)^T (b * k))^T`` is that rule with ``a = -(b * k) e^g`` (which reads the state
before it decays), ``b = k`` and values ``w * v``.
"""

from typing import Optional, Tuple

import torch

from myfla.ops.common.checks import check_member
from myfla.ops.kda.gate import fused_kda_gate
from myfla.ops.kda.inputs import KdaActivation
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.l2norm import l2norm

__all__ = ["prepare"]


def prepare(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, b: torch.Tensor, w: torch.Tensor,
    initial_state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor], state_v_first: bool, l2norm_qk: bool,
    use_gate: bool, A_log: Optional[torch.Tensor], dt_bias: Optional[torch.Tensor], lower_bound: Optional[float],
    checked: bool = False,
) -> Tuple[Tuple[torch.Tensor, ...], torch.dtype]:  # fmt: skip
    """Check the op's arguments and turn them into those of the other rule.

    Args:
        who: the op's name.
        q, k: ``[B, T, H, K]``.
        v, w: ``[B, T, HV, V]``.
        g, b: ``[B, T, HV, K]``.
        initial_state, cu_seqlens, state_v_first: as the op.
        l2norm_qk, use_gate, A_log, dt_bias, lower_bound: the op's options.
        checked: there is nothing left to check.

    Returns:
        q, k, v, a, b and gk of the rule, and the dtype of the outputs.
    """
    if not checked:
        key, value = (x.shape[-1] if isinstance(x, torch.Tensor) and x.dim() else 0 for x in (k, v))
        per_token = {"g": (g, (key,)), "b": (b, (key,)), "w": (w, (value,))}
        check_member(who, q, k, v, per_token, initial_state, cu_seqlens, state_v_first)
        KdaActivation(use_gate, A_log, dt_bias, lower_bound, False, False).check(who, g)
    if use_gate:
        g = fused_kda_gate(g, A_log, dt_bias, lower_bound)
    wide, dtype = accumulation_dtype(q, k, v, g, b, w, initial_state), q.dtype
    if l2norm_qk:
        q, k = l2norm(q, output_dtype=wide), l2norm(k, output_dtype=wide)
    group = v.shape[2] // q.shape[2]
    if group > 1:
        q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)
    k, g = k.to(wide), g.to(wide)
    return (q.to(wide), k, w.to(wide) * v.to(wide), -(b.to(wide) * k) * g.exp(), k, g), dtype

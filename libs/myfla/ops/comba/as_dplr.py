"""Comba's rule as the delta rule with a diagonal-plus-low-rank transition.

``e^g S + k (beta (v - S^T p))^T`` is that rule with ``a = -p``, ``b = beta k`` and keys ``beta k``.
"""

from typing import Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_like, check_member
from myfla.ops.common.run_rule import run_rule
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.l2norm import l2norm

__all__ = ["run_comba"]


def run_comba(
    who: str, form: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: Optional[torch.Tensor], g: torch.Tensor,
    beta: Optional[torch.Tensor], initial_state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor], *,
    scale: Optional[float], output_final_state: bool, l2norm_qk: bool, backend: str, chunk_size: Optional[int] = None,
    inplace: bool = False,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:  # fmt: skip
    """The op ``who``, whose arguments these are, in a form of the other rule: ``"chunk"`` or ``"recurrent"``."""
    options = scale, output_final_state, l2norm_qk, chunk_size, inplace, backend
    key = call_key(who, options, q, k, v, p, g, beta, initial_state, cu_seqlens)
    plan = find_plan(key)
    x, dtype = _prepare(who, q, k, v, p, g, beta, initial_state, cu_seqlens, l2norm_qk, checked=plan is not None)
    if plan is not None:
        return plan(x, None, initial_state, cu_seqlens)
    return run_rule(
        who, DPLR, form, x, initial_state, cu_seqlens, scale=scale, output_final_state=output_final_state,
        backend=backend, out_dtype=dtype, chunk_size=chunk_size, inplace=inplace, key=key,
    )  # fmt: skip


def _prepare(
    who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: Optional[torch.Tensor], g: torch.Tensor,
    beta: Optional[torch.Tensor], initial_state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor],
    l2norm_qk: bool, checked: bool = False,
) -> Tuple[Tuple[torch.Tensor, ...], torch.dtype]:  # fmt: skip
    """Check the op's arguments and turn them into those of the other rule.

    Args:
        who: the op's name.
        q, k, p: ``[B, T, H, K]``; p is k where it is None.
        v: ``[B, T, HV, V]``.
        g, beta: ``[B, T, HV]``; beta is 1 where it is None.
        initial_state, cu_seqlens: as the op.
        l2norm_qk: normalise q, k and p.
        checked: there is nothing left to check.

    Returns:
        q, k, v, a, b and gk of the rule, and the dtype of the outputs.
    """
    if not checked:
        per_token = {"g": (g, ()), **({} if beta is None else {"beta": (beta, ())})}
        check_member(who, q, k, v, per_token, initial_state, cu_seqlens)
        if p is not None:
            check_like(who, "p", p, "k", k)
    p = k if p is None else p
    wide, dtype = accumulation_dtype(q, k, v, p, g, beta, initial_state), q.dtype
    q, k, p = (l2norm(x, output_dtype=wide) if l2norm_qk else x.to(wide) for x in (q, k, p))
    group = v.shape[2] // q.shape[2]
    if group > 1:
        q, k, p = (x.repeat_interleave(group, 2) for x in (q, k, p))
    g, v = g.to(wide).unsqueeze(-1), v.to(wide)
    writes = k if beta is None else k * beta.to(wide).unsqueeze(-1)
    return (q, writes, v, -p, writes, g.expand(*k.shape)), dtype

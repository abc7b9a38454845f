"""The gated delta product as a gated delta rule over ``n T`` steps: decay on a token's first, output after its last."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops.common.checks import check_member, check_per_token
from myfla.ops.common.run_rule import run_rule
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

__all__ = ["run_steps"]


def run_steps(
    who: str, form: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: Optional[torch.Tensor],
    beta: torch.Tensor, num_householder: int, initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor], **options: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:  # fmt: skip
    """Check, spread over the steps, run, and keep the outputs of each token's last step.

    Args:
        who: the op's name.
        form: ``"chunk"`` or ``"recurrent"``.
        q: ``[B, T, H, K]``.
        k: ``[B, n T, H, K]``.
        v: ``[B, n T, HV, V]``.
        g: ``[B, T, HV]`` or None.
        beta: ``[B, n T, HV]``.
        num_householder: n.
        initial_state: ``[N, HV, K, V]`` or None.
        cu_seqlens: ``[N + 1]`` offsets of tokens, or None.
        **options: handed on to `run_rule`.

    Returns:
        o ``[B, T, HV, V]`` and the final state ``[N, HV, K, V]`` or None.
    """
    n = num_householder
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise value_error(who, "num_householder", "must be a positive integer", n)
    check_tensor(who, "q", q)
    for name, x in (("k", k), ("v", v), ("beta", beta)):
        if not isinstance(x, torch.Tensor) or x.dim() < 2 or x.shape[1] != n * q.shape[1]:
            got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise value_error(who, name, f"must have num_householder * T = {n * q.shape[1]} steps", got)
    decay = {} if g is None else {"g": (g, ())}
    check_member(who, q, k[:, ::n], v[:, ::n], decay, initial_state, cu_seqlens)
    check_per_token(who, "beta", beta, v)
    wide = accumulation_dtype(q, k, v, g, beta, initial_state)
    batch, tokens, value_heads = q.shape[0], q.shape[1], v.shape[2]
    g = torch.zeros(batch, tokens, value_heads, dtype=wide, device=v.device) if g is None else g
    if n > 1:
        g, q = _on_step(g, n, 0), _on_step(q, n, n - 1)
        cu_seqlens = None if cu_seqlens is None else cu_seqlens * n
    o, final = run_rule(
        who, GATED_DELTA, form, (q, k, v, g, beta), initial_state, cu_seqlens, out_dtype=q.dtype, **options
    )
    return o if n == 1 else o.view(batch, tokens, n, *o.shape[2:])[:, :, -1].contiguous(), final


def _on_step(x: torch.Tensor, n: int, step: int) -> torch.Tensor:
    """``[B, T, ...]`` as ``[B, n T, ...]``: on one step of each token, zeros on the others."""
    zeros = [torch.zeros_like(x)] * n
    zeros[step] = x
    return torch.stack(zeros, dim=2).flatten(1, 2)

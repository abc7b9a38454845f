"""The diagonal-plus-low-rank delta rule in plain operations, for compilers, exporters and function transforms."""

from typing import Callable, Optional, Tuple

import torch

from myfla.ops.common.plain import (
    first_state,
    join_chunks,
    solve_unit_lower,
    split_chunks,
    states_before,
    sums_between,
)
from myfla.utils.autocast import without_autocast
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.rows import from_rows, to_rows

__all__ = ["plain_chunks", "plain_rule", "plain_step"]

CHUNK = 16
"""The decays of a chunk are ``[C, C, K]``: exact however strong they are, but large."""


@without_autocast
def plain_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float,
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
    chunk: int = CHUNK,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_dplr_delta_rule` of checked arguments; the notation is that of `naive.dplr_chunkwise`.

    Args:
        q, k, a, b, gk: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        scale: factor on q.
        initial_state: ``[N, H, K, V]`` or None.
        cu_seqlens: ``[N + 1]`` or None; computed as a batch of N rows as long as all sequences together.
        chunk: tokens in a chunk. It does not follow T, so that one graph serves every T.

    Returns:
        o ``[B, T, H, V]`` in q's dtype and the final states ``[N, H, K, V]`` in float32 (or float64).
    """
    if cu_seqlens is not None:
        rows = [to_rows(x, cu_seqlens) for x in (q, k, v, a, b, gk)]
        o, final = plain_chunks(*rows, scale, initial_state, None, chunk)
        return from_rows(o, cu_seqlens), final
    dtype, out_dtype = accumulation_dtype(q, k, v, a, b, gk, initial_state), q.dtype
    tokens, heads = v.shape[1:3]
    q, k, v, a, b, gk = (split_chunks(x.to(dtype), chunk, heads) for x in (q, k, v, a, b, gk))
    state = first_state(initial_state, v, v.shape[1], heads, k.shape[4], v.shape[4], dtype)
    pair = sums_between(gk).exp()
    before = torch.cat([torch.zeros_like(pair[..., :1, :, :]), pair[..., :-1, :, :]], dim=-3)
    rise = gk.cumsum(-2).exp()
    rise_before = torch.cat([torch.ones_like(rise[..., :1, :]), rise[..., :-1, :]], dim=-2)
    fall = pair[..., -1, :, :]

    read = torch.cat([_products(a, k, before) @ v, a * rise_before], dim=-1)
    found = solve_unit_lower(-_products(a, b, before), read)
    known, looked = found.split([v.shape[4], k.shape[4]], dim=-1)
    replaced = b * fall
    given = (k * fall).transpose(-1, -2) @ v + replaced.transpose(-1, -2) @ known
    states, final = states_before(rise[..., -1, :].unsqueeze(-1), replaced, looked, given, state)
    u = known + looked @ states
    o = (q * rise) @ states + _products(q, k, pair) @ v + _products(q, b, pair) @ u
    return (join_chunks(o, tokens) * scale).to(out_dtype), final


def plain_rule(scale: float, cu_seqlens: Optional[torch.Tensor]) -> Callable[..., Tuple[torch.Tensor, torch.Tensor]]:
    """`plain_chunks` as a function of its tensors alone, ``(q, k, v, a, b, gk, initial_state)``."""

    def rule(q, k, v, a, b, gk, initial_state):
        return plain_chunks(q, k, v, a, b, gk, scale, initial_state, cu_seqlens)

    return rule


def _products(x: torch.Tensor, y: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    """``sum_d x_td y_sd decay_tsd``."""
    return (x.unsqueeze(-2) * y.unsqueeze(-3) * decay).sum(-1)


@without_autocast
def plain_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float,
    initial_state: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`plain_chunks` of one token, T = 1, in a handful of operations."""
    dtype, out_dtype = accumulation_dtype(q, k, v, a, b, gk, initial_state), q.dtype
    q, k, v, a, b, gk = (x.to(dtype)[:, 0].unsqueeze(-1) for x in (q, k, v, a, b, gk))
    state = first_state(initial_state, v, v.shape[0], v.shape[1], k.shape[2], v.shape[2], dtype)
    found = a.transpose(-1, -2) @ state
    state = gk.exp() * state + b * found + k * v.transpose(-1, -2)
    o = scale * (q.transpose(-1, -2) @ state)
    return o.transpose(1, 2).to(out_dtype), state

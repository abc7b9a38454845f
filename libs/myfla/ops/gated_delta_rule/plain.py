"""The gated delta rule in plain operations, for compilers, exporters and function transforms."""

from typing import Optional, Tuple

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
from myfla.utils.rows import from_rows, to_rows

__all__ = ["plain_chunks"]

CHUNK = 32


@without_autocast
def plain_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    cu_seqlens: Optional[torch.Tensor],
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    chunk: int = CHUNK,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_gated_delta_rule` of checked arguments; the notation is that of `chunk_fwd`, with ``delta = beta E``.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``.
        g, beta: ``[B, T, HV]``.
        initial_state: ``[N, HV, K, V]`` or None.
        scale: factor on q.
        cu_seqlens: ``[N + 1]`` or None; computed as a batch of N rows as long as all sequences together.
        dtype: what is computed in.
        out_dtype: dtype of the outputs.
        chunk: tokens in a chunk. It does not follow T, so that one graph serves every T.

    Returns:
        o ``[B, T, HV, V]`` and the final states ``[N, HV, K, V]`` in ``dtype``.
    """
    if cu_seqlens is not None:
        rows = [to_rows(x, cu_seqlens) for x in (q, k, v, g, beta)]
        o, final = plain_chunks(*rows, initial_state, scale, None, dtype, out_dtype, chunk)
        return from_rows(o, cu_seqlens), final
    tokens, heads = v.shape[1:3]
    g, beta = g.unsqueeze(-1), beta.unsqueeze(-1)
    q, k, v, g, beta = (split_chunks(x.to(dtype), chunk, heads) for x in (q, k, v, g, beta))
    state = first_state(initial_state, v, v.shape[1], heads, k.shape[4], v.shape[4], dtype)
    pair = sums_between(g).squeeze(-1).exp()
    rise = g.cumsum(-2).exp()
    fall, whole = pair[..., -1, :].unsqueeze(-1), rise[..., -1:, :]

    system = (beta * pair * (k @ k.transpose(-1, -2))).tril(-1)
    right = torch.cat([beta * v, beta * rise * k], dim=-1)
    written, erased = solve_unit_lower(system, right).split([v.shape[4], k.shape[4]], dim=-1)
    handed = fall * k
    states, final = states_before(whole, handed, -erased, handed.transpose(-1, -2) @ written, state)
    delta = written - erased @ states
    o = (rise * q) @ states + (pair * (q @ k.transpose(-1, -2))) @ delta
    return (join_chunks(o, tokens) * scale).to(out_dtype), final

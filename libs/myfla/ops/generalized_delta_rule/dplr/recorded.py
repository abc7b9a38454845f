"""The DPLR rule for whoever records operations: one op of a compiled graph, plain operations for the others."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops.generalized_delta_rule.dplr.inputs import fill_heads
from myfla.ops.generalized_delta_rule.dplr.plain import plain_chunks
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.graph_op import graph_op, takes_graph_ops

__all__ = ["recorded_chunks"]


def recorded_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: float,
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_dplr_delta_rule` of checked arguments; arguments and results as `plain_chunks`."""
    if _CHUNKS is None or not takes_graph_ops():
        return plain_chunks(q, k, v, a, b, gk, scale, initial_state, cu_seqlens)
    dtype = accumulation_dtype(q, k, v, a, b, gk, initial_state)
    key, value = q.shape[3], v.shape[3]
    filled = fill_heads(q, k, v, a, b, gk, initial_state)  # out here, where it is recorded
    o, final = _CHUNKS(*filled, cu_seqlens, scale, dtype, q.dtype)
    return o[..., :value], final[:, :, :key, :value].contiguous()


def _eager(*given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    from myfla.ops.generalized_delta_rule.dplr.chunk import run_chunks  # which records through this module

    q, k, v, a, b, gk, state, cu_seqlens, scale, _, _ = given
    rows = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return run_chunks(q, k, v, a, b, gk, scale, state, cu_seqlens, rows)


_CHUNKS = graph_op("chunk_dplr_delta_rule", ("q", "k", "v", "a", "b", "gk"), _eager)

"""The gated delta rule for whoever records operations: one op of a compiled graph, plain operations for the others."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops.gated_delta_rule.plain import plain_chunks
from myfla.utils.graph_op import graph_op, takes_graph_ops

__all__ = ["recorded_chunks"]


def recorded_chunks(
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
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_gated_delta_rule` of checked arguments; arguments and results as `plain_chunks`."""
    if _CHUNKS is not None and takes_graph_ops():
        return _CHUNKS(q, k, v, g, beta, initial_state, cu_seqlens, scale, dtype, out_dtype)
    return plain_chunks(q, k, v, g, beta, initial_state, scale, cu_seqlens, dtype, out_dtype)


def _eager(*given: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    from myfla.ops.gated_delta_rule.chunk import run_chunks  # which records through this module

    *tensors, cu_seqlens, scale, dtype, out_dtype = given
    rows = tensors[0].shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return run_chunks(tuple(tensors), scale, cu_seqlens, rows, None, dtype, out_dtype)


_CHUNKS = graph_op("chunk_gated_delta_rule", ("q", "k", "v", "g", "beta"), _eager)

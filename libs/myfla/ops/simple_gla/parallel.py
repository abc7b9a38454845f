"""`parallel_simple_gla`: outputs together with the matrix that makes them of the values."""

from typing import Optional, Tuple

import torch

from myfla.ops.common.naive import decayed_products
from myfla.ops.simple_gla.chunk import chunk_simple_gla
from myfla.ops.simple_gla.decays import given_decays
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_scale

__all__ = ["parallel_simple_gla"]

NAME = "parallel_simple_gla"


def parallel_simple_gla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    output_attentions: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    *,
    backend: str = "auto",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`chunk_simple_gla` without states, and on request the weight ``scale q_t^T k_s exp(c_t - c_s)`` of every value.

    Args:
        q, k, v, g, scale, cu_seqlens, cu_seqlens_cpu, backend: as for `chunk_simple_gla`.
        output_attentions: also return the weights, T times as much memory as the outputs take; not of packed sequences.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the weights ``[B, HV, T, T]`` in q's dtype, differentiable, or None.

    Raises:
        ValueError, BackendError: as for `chunk_simple_gla`; ``output_attentions`` with ``cu_seqlens``.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> parallel_simple_gla(x, x, 3 * x, output_attentions=True)[1].flatten().tolist()
        [1.0, 0.0, 1.0, 1.0]
    """
    if output_attentions and cu_seqlens is not None:
        hint = "call the op on each sequence, or leave the weights out"
        raise value_error(NAME, "output_attentions", "must be False with cu_seqlens", True, hint)
    o, _ = chunk_simple_gla(q, k, v, g, None, scale, cu_seqlens=cu_seqlens, backend=backend)
    if not output_attentions:
        return o, None
    repeats, dtype = v.shape[2] // q.shape[2], accumulation_dtype(q, k, v, g)
    queries, keys = (x.to(dtype).repeat_interleave(repeats, 2).transpose(1, 2) for x in (q, k))
    c = given_decays(NAME, v, g, None).to(dtype).cumsum(1).transpose(1, 2).unsqueeze(-1)
    return o, (check_scale(NAME, scale, q.shape[3]) * decayed_products(queries, keys, c, c, 0)).to(q.dtype)

"""The chunk form on a GPU's matrix units: bfloat16 products, float32 sums. What `chunk` takes where it can."""

import functools
from typing import Optional, Tuple

import torch

from myfla.ops.common.half_products import has_matrix_units
from myfla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule
from myfla.ops.gated_delta_rule.half_bwd import half_backward
from myfla.ops.gated_delta_rule.half_fwd import Kept, half_forward, lengths_of
from myfla.ops.gated_delta_rule.half_tokens import Cut, cut_dense
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.tracing import tracing


def fits_matrix_units(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: Optional[torch.Tensor]) -> bool:
    """Whether this form serves: bfloat16 on a GPU, nothing in float64, and nobody watching.

    float16 does not hold the range of sums over a chunk; it keeps float32 products. A compiler gets the recorded form:
    of this one's writes into slices it makes a copy of the whole at every chunk.

    Args:
        more: g, beta and the initial state.
    """
    if tracing() or not has_matrix_units(v.device) or v.numel() == 0:
        return False
    return all(x.dtype == torch.bfloat16 for x in (q, k, v)) and accumulation_dtype(v, *more) == torch.float32


def half_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    unit: bool,
    chunk: Optional[int] = None,
    cut: Optional[Cut] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_gated_delta_rule` of checked arguments; ``unit`` brings q and k to length one.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype and the final states ``[B, HV, K, V]`` in float32 (or float64).
    """
    tensors = (q, k, v, g, beta, initial_state)
    how = (scale, cut or cut_dense(v, chunk), unit, accumulation_dtype(*tensors))
    if records(*tensors):
        return _HalfChunks.apply(*tensors, *how)
    return half_forward(*tensors, *how)[:2]


class _HalfChunks(torch.autograd.Function):
    """Joins the two hand-written directions."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, initial_state, scale, cut, unit, dtype):
        o, final, kept = half_forward(q, k, v, g, beta, initial_state, scale, cut, unit, dtype)
        ctx.save_for_backward(q, k, v, g, beta, initial_state, *kept)
        ctx.how = scale, cut, unit, dtype
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx, do, dfinal):
        q, k, v, g, beta, initial_state, *kept = ctx.saved_tensors
        scale, cut, unit, dtype = ctx.how
        if torch.is_grad_enabled():  # create_graph: second derivatives go through the token loop
            inputs = (q, k, v, g, beta, initial_state)
            loop = functools.partial(_token_loop, scale, unit)
            return (*backward_through(loop, inputs, ctx.needs_input_grad[:6], (do, dfinal)), None, None, None, None)
        do = torch.zeros_like(v) if do is None else do
        of = lengths_of(q, k, unit, dtype)
        *grads, dinitial = half_backward(do, dfinal, q, k, v, g, beta, scale, cut, of, Kept(*kept), dtype)
        dinitial = None if initial_state is None else dinitial.to(initial_state.dtype)
        return (*grads, dinitial, None, None, None, None)


def _token_loop(scale, unit, q, k, v, g, beta, initial_state):
    """The same function, as autograd can record it."""
    return fused_recurrent_gated_delta_rule(
        q, k, v, g=g, beta=beta, scale=scale, initial_state=initial_state, output_final_state=True,
        use_qk_l2norm_in_kernel=unit,
    )  # fmt: skip

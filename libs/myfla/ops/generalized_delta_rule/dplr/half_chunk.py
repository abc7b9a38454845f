"""The chunk form on a GPU's matrix units: bfloat16 products, float32 sums. What `chunk` takes where it can."""

from typing import Optional, Tuple

import torch

from myfla.ops.common.half_tokens import Cut, cut_dense
from myfla.ops.generalized_delta_rule.dplr.half_bwd import half_backward
from myfla.ops.generalized_delta_rule.dplr.half_fwd import How, Kept, half_forward
from myfla.ops.generalized_delta_rule.dplr.half_levels import choose_levels
from myfla.ops.generalized_delta_rule.dplr.plain import plain_rule
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype


def half_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    chunk: Optional[int] = None,
    lower_bound: Optional[float] = None,
    cut: Optional[Cut] = None,
    fuse: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_dplr_delta_rule` of checked arguments, dense batches only.

    Args:
        chunk: tokens in a chunk.
        lower_bound: the caller's word that no log decay is below, which saves work. A lower one counts as some value
            below the bound.
        cut: chunks and groups, chosen here by default.
        fuse: compile the elementwise passes.

    Returns:
        o ``[B, T, H, V]`` in v's dtype and the final states ``[B, H, K, V]`` in float32 (or float64).
    """
    tensors = (q, k, v, a, b, gk, initial_state)
    cut, dtype = cut or cut_dense(v, chunk), accumulation_dtype(*tensors)
    how = How(scale, cut, choose_levels(cut.chunk, dtype, lower_bound), dtype, fuse)
    if records(*tensors):
        return _HalfChunks.apply(*tensors, how)
    return half_forward(*tensors, how)[:2]


class _HalfChunks(torch.autograd.Function):
    """Joins the two hand-written directions."""

    @staticmethod
    def forward(ctx, q, k, v, a, b, gk, initial_state, how):
        o, final, kept = half_forward(q, k, v, a, b, gk, initial_state, how)
        ctx.save_for_backward(q, k, v, a, b, gk, initial_state, *kept.flat())
        ctx.how = how
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx, do, dfinal):
        given, kept = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        initial_state = given[6]
        if torch.is_grad_enabled():  # create_graph: second derivatives go through plain operations
            rule = plain_rule(ctx.how.scale, None)
            return (*backward_through(rule, given, ctx.needs_input_grad[:7], (do, dfinal)), None)
        do = torch.zeros_like(given[2]) if do is None else do
        *grads, dinitial = half_backward(do, dfinal, *given[:6], ctx.how, Kept.of(kept))
        return (*grads, None if initial_state is None else dinitial.to(initial_state.dtype), None)

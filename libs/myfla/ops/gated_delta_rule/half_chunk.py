"""The chunk form on a GPU's matrix units: bfloat16 products, float32 sums. What `chunk` takes where it can."""

import functools
from typing import Any, Optional, Sequence, Tuple

import torch

from myfla.ops.common.half_tokens import Cut, cut_dense
from myfla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule
from myfla.ops.gated_delta_rule.half_bwd import half_backward
from myfla.ops.gated_delta_rule.half_fwd import How, Kept, half_forward
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype


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
    fuse: bool = False,
    linear: Optional[bool] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_gated_delta_rule` of checked arguments.

    Args:
        unit: bring q and k to length one.
        chunk: tokens in a chunk.
        cut: chunks and groups, chosen here by default.
        fuse: compile the elementwise passes.
        linear: scan with the fewest operations (`half_linear`), rather than in the shortest time on the GPU
            (`half_scan`). By default the latter in a CUDA graph, where an operation costs nothing to launch.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype and the final states ``[B, HV, K, V]`` in float32 (or float64).
    """
    tensors = (q, k, v, g, beta, initial_state)
    how = describe_call(tensors, scale, unit, chunk, cut, fuse, linear)
    if records(*tensors):
        return _HalfChunks.apply(*tensors, how)
    return half_forward(*tensors, how, keep=False)[:2]


def describe_call(
    tensors: Sequence[Any], scale: float, unit: bool, chunk: Optional[int] = None,
    cut: Optional[Cut] = None, fuse: bool = False, linear: Optional[bool] = None,
) -> How:
    """What `half_chunks` decides before it runs; ``tensors`` are its first six arguments."""
    v = tensors[2]
    if linear is None:
        linear = v.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    return How(scale, cut or cut_dense(v, chunk), unit, accumulation_dtype(*tensors), fuse, linear)


class _HalfChunks(torch.autograd.Function):
    """Joins the two hand-written directions."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, initial_state, how):
        # Detached: to a compiler the same function of the same tensors, with and without gradients.
        given = (None if x is None else x.detach() for x in (q, k, v, g, beta, initial_state))
        o, final, kept = half_forward(*given, how)
        ctx.save_for_backward(q, k, v, g, beta, initial_state, *kept.flat())
        ctx.how = how
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx, do, dfinal):
        q, k, v, g, beta, initial_state, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: second derivatives go through the token loop
            inputs = (q, k, v, g, beta, initial_state)
            loop = functools.partial(_token_loop, ctx.how.scale, ctx.how.unit)
            return (*backward_through(loop, inputs, ctx.needs_input_grad[:6], (do, dfinal)), None)
        do = torch.zeros_like(v) if do is None else do
        q, k, v, g, beta = (x.detach() for x in (q, k, v, g, beta))
        *grads, dinitial = half_backward(do, dfinal, q, k, v, g, beta, ctx.how, Kept.of(kept))
        return (*grads, None if initial_state is None else dinitial.to(initial_state.dtype), None)


def _token_loop(scale, unit, q, k, v, g, beta, initial_state):
    """The same function, as autograd can record it."""
    return fused_recurrent_gated_delta_rule(
        q, k, v, g=g, beta=beta, scale=scale, initial_state=initial_state, output_final_state=True,
        use_qk_l2norm_in_kernel=unit,
    )  # fmt: skip

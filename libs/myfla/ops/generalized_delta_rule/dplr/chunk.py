"""`chunk_dplr_delta_rule`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.backends.choice import choose
from myfla.backends.compiler import compiled
from myfla.backends.official import CHUNK_DPLR
from myfla.ops._delta.bf16.chunks import bf16_chunks, bf16_problem
from myfla.ops._delta.bf16.dplr import DPLR
from myfla.ops._delta.bf16.graph import graph_chunks
from myfla.ops.common.layout import ChunkLayout
from myfla.ops.common.tuning import block_chunks, chunk_tokens
from myfla.ops.generalized_delta_rule.dplr.chunk_bwd import chunk_backward
from myfla.ops.generalized_delta_rule.dplr.chunk_factors import Inputs
from myfla.ops.generalized_delta_rule.dplr.chunk_fwd import Saved, chunk_forward
from myfla.ops.generalized_delta_rule.dplr.inputs import check_inputs, check_options, fill_heads
from myfla.ops.generalized_delta_rule.dplr.other_backends import naive_tokens, official_rule
from myfla.ops.generalized_delta_rule.dplr.plain import plain_rule
from myfla.ops.generalized_delta_rule.dplr.recorded import recorded_chunks
from myfla.utils.autograd import backward_through
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import refuse_unknown, value_error
from myfla.utils.graph_op import takes_graph_ops
from myfla.utils.tensors import check_scale
from myfla.utils.tracing import tracing

__all__ = ["chunk_dplr_delta_rule"]

NAME = "chunk_dplr_delta_rule"
KEYWORDS = (
    "q", "k", "v", "a", "b", "gk", "scale", "initial_state", "output_final_state", "cu_seqlens", "cu_seqlens_cpu",
    "safe_gate", "chunk_size", "disable_recompute", "cp_context", "lower_bound", "backend",
)  # fmt: skip
LARGEST_CHUNK = 32
"""The work within a chunk grows with its size faster than in other rules, and so does the sum of its decays."""


def chunk_dplr_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    safe_gate: bool = False,
    chunk_size: Optional[int] = None,
    disable_recompute: bool = False,
    cp_context: Any = None,
    lower_bound: Optional[float] = None,
    *,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The delta rule with a diagonal-plus-low-rank transition, many tokens at a time.

    ``S <- diag(exp(gk)) S + b (a^T S)^T + k v^T;  o = scale S^T q`` for every token; a reads the state before it
    decays (RWKV-7, arXiv 2503.14456). Sums and states are float32, or float64 if any input is.

    Every log decay is safe, down to -inf. What bounds the quick way is the sum of log decays over one chunk, per
    channel: within 40 either way it is exact to rounding (the RWKV-7 layer stays below 39 at the largest chunk, 64);
    chunks and heads beyond take a way of about four times the cost that is right for all. The choice is made for
    each chunk and head by itself; bfloat16 on a GPU goes one way for all decays (`bf16.subchunks`). A NaN
    reaches back at most to the start of its chunk, never into another sequence.

    Args:
        q, k, a, b: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        gk: ``[B, T, H, K]`` log decay of each key channel, at or below zero.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, H, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu, safe_gate, disable_recompute: official names; they choose between kernels there and change
            nothing here.
        chunk_size: tokens in a chunk, 16, 32 or 64 as officially; chosen by K and T if not given. Changes rounding
            and speed only.
        cp_context: must be None; there is no context parallelism.
        lower_bound: the promise ``lower_bound <= gk <= 0``, as officially; must be negative. Nothing needs it. With
            bfloat16 on a GPU it saves time, and results are wrong if it is broken.
        backend: whose code computes, see `myfla.backends`.
        **legacy: ``head_first=False``.

    Returns:
        o ``[B, T, H, V]`` in q's dtype; the final states ``[N, H, K, V]`` in float32 (or float64), or None.

    Raises:
        ValueError: a shape, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> x = torch.ones(1, 3, 1, 2)
        >>> o, state = chunk_dplr_delta_rule(x, x, x, 0 * x, x, 0 * x, scale=1.0, output_final_state=True)
        >>> o[0, :, 0, 0].tolist(), state.shape
        ([2.0, 4.0, 6.0], torch.Size([1, 1, 2, 2]))
    """
    refuse_unknown(NAME, legacy, KEYWORDS, inert=("head_first",))
    if legacy.get("head_first"):
        raise value_error(NAME, "head_first", "is not supported", True, "pass tensors as [B, T, H, D]")
    rows = check_inputs(NAME, {"q": q, "k": k, "a": a, "b": b, "gk": gk}, v, initial_state, cu_seqlens)
    scale = check_scale(NAME, scale, q.shape[3])
    check_options(NAME, chunk_size, cp_context, lower_bound)
    who_computes = choose(NAME, backend, CHUNK_DPLR, q, k, v, a, b, gk, initial_state)
    o, final = run_chunks(
        q, k, v, a, b, gk, scale, initial_state, cu_seqlens, rows, chunk_size, who_computes, lower_bound
    )
    return o, final if output_final_state else None


def run_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    gk: torch.Tensor,
    scale: Optional[float],
    initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor],
    rows: int,
    chunk_size: Optional[int] = None,
    who_computes: str = "torch",
    lower_bound: Optional[float] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`chunk_dplr_delta_rule` with checked arguments, of N = ``rows`` sequences; always returns the final state."""
    key, value = q.shape[3], v.shape[3]
    scale = key**-0.5 if scale is None else float(scale)
    given = (q, k, v, a, b, gk, scale, initial_state, cu_seqlens)
    if who_computes == "fla":
        return official_rule(CHUNK_DPLR, *given)
    if who_computes == "naive":
        return naive_tokens(*given)
    traced, tensors = tracing(q), (q, k, v, a, b, gk)
    if bf16_problem((q, k, v, a, b), gk, initial_state) is None:
        if not traced:
            return bf16_chunks(
                DPLR, tensors, initial_state, scale, plain_rule(scale, cu_seqlens), cu_seqlens, chunk_size,
                fuse=who_computes == "compiled", lower_bound=lower_bound,
            )  # fmt: skip
        if cu_seqlens is None and takes_graph_ops():
            return graph_chunks(DPLR, tensors, initial_state, scale, chunk_size, lower_bound=lower_bound)
    if who_computes == "compiled":
        return compiled(recorded_chunks)(*given)
    if traced:
        return recorded_chunks(*given)
    o, final = _padded(q, k, v, a, b, gk, initial_state, scale, cu_seqlens, rows, chunk_size)
    o = o if o.shape[3] == value else o[..., :value].contiguous()
    return o, final if final.shape[2:] == (key, value) else final[:, :, :key, :value].contiguous()


def _padded(q, k, v, a, b, gk, initial_state, scale, cu_seqlens, rows, chunk_size):
    """Fill head sizes up, choose the chunks, and run."""
    q, k, v, a, b, gk, initial_state = fill_heads(q, k, v, a, b, gk, initial_state)
    batch, tokens, heads, key = q.shape
    size = max(key, v.shape[3])
    typical = tokens if cu_seqlens is None else -(-tokens // max(rows, 1))
    chunk = chunk_size or min(LARGEST_CHUNK, chunk_tokens(typical, key, v.shape[3], q.device))
    layout = ChunkLayout(batch, tokens, chunk, cu_seqlens, q.device, block_chunks(heads * chunk * size, q.device))
    tensors = (q, k, v, a, b, gk, initial_state)
    dtype = accumulation_dtype(*tensors)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _ChunkDPLRFunction.apply(*tensors, scale, layout, dtype, cu_seqlens)
    return chunk_forward(*tensors, scale, layout, dtype, save=False)[:2]


class _ChunkDPLRFunction(torch.autograd.Function):
    """Joins the two hand-written directions."""

    @staticmethod
    def forward(ctx, q, k, v, a, b, gk, initial_state, scale, layout, dtype, cu_seqlens):
        o, final, saved = chunk_forward(q, k, v, a, b, gk, initial_state, scale, layout, dtype, save=True)
        ctx.save_for_backward(q, k, v, a, b, gk, initial_state, cu_seqlens, *saved)
        ctx.scale, ctx.layout = scale, layout
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx, do, dfinal):
        q, k, v, a, b, gk, initial_state, cu_seqlens, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: second derivatives go through plain operations
            given = (q, k, v, a, b, gk, initial_state)
            grads = backward_through(plain_rule(ctx.scale, cu_seqlens), given, ctx.needs_input_grad[:7], (do, dfinal))
            return (*grads, None, None, None, None)
        do = torch.zeros_like(v) if do is None else do
        inputs = Inputs(q, k, v, a, b, gk)
        grads, dinitial = chunk_backward(do, dfinal, inputs, ctx.scale, ctx.layout, Saved(*saved))
        dinitial = None if initial_state is None else dinitial.to(initial_state.dtype)
        return (*grads, dinitial, None, None, None, None)

"""`chunk_gated_delta_rule`: the form for training and long inputs."""

import functools
from typing import Any, Optional, Tuple

import torch

from myfla.backends.choice import choose
from myfla.backends.compiler import compiled
from myfla.backends.official import CHUNK_GATED_DELTA_RULE
from myfla.ops._delta.bf16.chunks import bf16_chunks, bf16_problem
from myfla.ops._delta.bf16.gated_delta import GATED_DELTA
from myfla.ops._delta.bf16.graph import graph_chunks
from myfla.ops.common.layout import ChunkLayout
from myfla.ops.common.tuning import block_chunks, chunk_tokens, states_together
from myfla.ops.gated_delta_rule.chunk_bwd import chunk_backward
from myfla.ops.gated_delta_rule.chunk_fwd import chunk_forward
from myfla.ops.gated_delta_rule.fused_recurrent import fused_recurrent_gated_delta_rule
from myfla.ops.gated_delta_rule.inputs import (
    Activation,
    check_per_token,
    check_shapes,
    count_sequences,
    state_k_first,
    take_legacy_keywords,
)
from myfla.ops.gated_delta_rule.other_backends import naive_tokens, official_chunks
from myfla.ops.gated_delta_rule.recorded import recorded_chunks
from myfla.utils.autograd import backward_through, records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.graph_op import takes_graph_ops
from myfla.utils.tensors import check_scale
from myfla.utils.tracing import tracing

__all__ = ["chunk_gated_delta_rule", "chunk_gdn"]

NAME = "chunk_gated_delta_rule"
KEYWORDS = (
    "q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel",
    "use_beta_sigmoid_in_kernel", "allow_neg_eigval", "state_v_first", "cu_seqlens", "cu_seqlens_cpu",
    "chunk_indices", "cp_context", "use_gate_in_kernel", "A_log", "dt_bias", "chunk_size", "backend",
)  # fmt: skip


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    chunk_indices: Optional[torch.Tensor] = None,
    cp_context: Any = None,
    *,
    use_gate_in_kernel: bool = False,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The gated delta rule, many tokens at a time.

    ``S <- exp(g) S;  S <- S + k (beta (v - S^T k))^T;  o = scale S^T q`` for every token (Gated DeltaNet,
    arXiv 2412.06464). Sums and states are float32, or float64 if any input is. Safe for every log decay from 0 to
    -inf. A NaN reaches back at most to the start of its chunk, and never into another sequence.

    Args:
        q, k: ``[B, T, H, K]`` queries and keys.
        v: ``[B, T, HV, V]`` values; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        g: ``[B, T, HV]`` log decay, or its pre-activation with ``use_gate_in_kernel``.
        beta: ``[B, T, HV]`` write strength, or its pre-activation with ``use_beta_sigmoid_in_kernel``.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q and k to length one first.
        use_beta_sigmoid_in_kernel: ``beta = sigmoid(beta)``.
        allow_neg_eigval: ``beta = 2 sigmoid(beta)``; needs ``use_beta_sigmoid_in_kernel``.
        state_v_first: states, in and out, are ``[N, HV, V, K]``.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu, chunk_indices: official names; they save a copy there and change nothing here.
        cp_context: must be None; there is no context parallelism.
        use_gate_in_kernel: ``g = -exp(A_log) softplus(g + dt_bias)``.
        A_log, dt_bias: ``[HV]``, with ``use_gate_in_kernel``; dt_bias may be None.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: whose code computes, see `myfla.backends`.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``), ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> q = k = torch.ones(1, 3, 1, 1); v = torch.ones(1, 3, 1, 2)
        >>> o, state = chunk_gated_delta_rule(q, k, v, g=torch.zeros(1, 3, 1), beta=torch.ones(1, 3, 1),
        ...                                   output_final_state=True)
        >>> o.shape, state.shape
        (torch.Size([1, 3, 1, 2]), torch.Size([1, 1, 1, 2]))
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    check_shapes(NAME, q, k, v)
    check_per_token(NAME, "g", g, v)
    check_per_token(NAME, "beta", beta, v)
    if chunk_size is not None and chunk_size not in (16, 32, 64):
        raise value_error(NAME, "chunk_size", "must be 16, 32 or 64", chunk_size)
    if cp_context is not None:
        raise value_error(NAME, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    activation = Activation(
        use_qk_l2norm_in_kernel, use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval
    )
    activation.check(NAME, g, v.shape[2])
    sequences = count_sequences(NAME, q, cu_seqlens)
    initial_state = state_k_first(NAME, initial_state, k, v, sequences, state_v_first)
    scale = check_scale(NAME, scale, k.shape[3])
    out_dtype = q.dtype
    who_computes = choose(NAME, backend, CHUNK_GATED_DELTA_RULE, q, k, v, g, beta, initial_state, A_log, dt_bias)
    if who_computes == "fla":
        o, final = official_chunks(q, k, v, g, beta, initial_state, scale, activation, cu_seqlens, output_final_state)
        return _results(o, final, output_final_state, state_v_first)
    compile_it = who_computes == "compiled"
    traced = tracing(q)
    use_bf16 = who_computes != "naive" and not (traced and (cu_seqlens is not None or not takes_graph_ops()))
    use_bf16 = use_bf16 and bf16_problem((q, k, v), g, beta, initial_state, A_log, dt_bias) is None
    if compile_it and not use_bf16:
        o, final = compiled(_recorded)(q, k, v, g, beta, initial_state, scale, activation, cu_seqlens)
        return _results(o, final, output_final_state, state_v_first)
    g, beta = activation.gates(g, beta)
    if use_bf16 and traced:
        o, final = graph_chunks(
            GATED_DELTA, (q, k, v, g, beta), initial_state, scale, chunk_size, activation.l2norm
        )  # fmt: skip
        return _results(o, final, output_final_state, state_v_first)
    dtype = accumulation_dtype(q, k, v, g, beta, initial_state)
    by_hand = who_computes != "naive" and not traced
    if not by_hand:
        q, k = activation.normalise(q, k)
    tensors = (q, k, v, g, beta, initial_state)
    if by_hand:
        unit = activation.l2norm
        o, final = run_chunks(tensors, scale, cu_seqlens, sequences, chunk_size, dtype, out_dtype, unit, compile_it)
    elif who_computes == "naive":
        o, final = naive_tokens(*tensors, scale, cu_seqlens, out_dtype)
    else:
        o, final = recorded_chunks(*tensors, scale, cu_seqlens, dtype, out_dtype)
    return _results(o, final, output_final_state, state_v_first)


def _results(
    o: torch.Tensor, final: Optional[torch.Tensor], output_final_state: bool, state_v_first: bool
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    if not output_final_state or final is None:
        return o, None
    return o, final.transpose(2, 3).contiguous() if state_v_first else final


def _recorded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor,
    state: Optional[torch.Tensor], scale: float, activation: Activation, cu_seqlens: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The whole op for a compiler, which fuses what stands around the rule."""
    out_dtype = q.dtype
    (q, k), (g, beta) = activation.normalise(q, k), activation.gates(g, beta)
    dtype = accumulation_dtype(q, k, v, g, beta, state)
    return recorded_chunks(q, k, v, g, beta, state, scale, cu_seqlens, dtype, out_dtype)


def run_chunks(
    tensors: Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Optional[torch.Tensor]],
    scale: float,
    cu_seqlens: Optional[torch.Tensor],
    sequences: int,
    chunk_size: Optional[int],
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    unit: bool = False,
    fuse: bool = False,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Choose the form and the chunks, and run; always returns the final state. With ``unit``, q and k come as they
    are; with ``fuse``, a GPU's passes are compiled."""
    q, k, v = tensors[:3]
    if bf16_problem((q, k, v), *tensors[3:]) is None:
        loop = functools.partial(_token_loop, scale, cu_seqlens, out_dtype, unit)
        return bf16_chunks(
            GATED_DELTA, tensors[:5], tensors[5], scale, loop, cu_seqlens, chunk_size, fuse=fuse, l2norm=unit
        )  # fmt: skip
    typical = q.shape[1] if cu_seqlens is None else -(-q.shape[1] // max(sequences, 1))
    chunk = chunk_size or chunk_tokens(typical, k.shape[3], v.shape[3], q.device)
    layout = _cut(k, v, chunk, cu_seqlens)
    how = (scale, layout, dtype, out_dtype)
    if records(*tensors):
        return _ChunkGatedDeltaRule.apply(*tensors, *how, cu_seqlens, unit)
    return chunk_forward(*tensors, *how, save=False, unit=unit)[:2]


def _cut(k: torch.Tensor, v: torch.Tensor, chunk: int, cu_seqlens: Optional[torch.Tensor]) -> ChunkLayout:
    """The layout whose blocks and states fit the device's caches."""
    (batch, tokens, heads, key), value, device = k.shape, v.shape[3], k.device
    group = v.shape[2] // heads
    states = states_together(key * value, device)
    together = max(1, min(heads, states // group))
    # Twice the usual block: a call less matters more here than a buffer that a second cache holds whole.
    chunks = 2 * block_chunks(together * group * chunk * max(key, value), device)
    return ChunkLayout(batch, tokens, chunk, cu_seqlens, device, chunks, states // (together * group), together)


class _ChunkGatedDeltaRule(torch.autograd.Function):
    """Joins the two hand-written directions."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, initial_state, scale, layout, dtype, out_dtype, cu_seqlens, unit):
        o, final, saved = chunk_forward(
            q, k, v, g, beta, initial_state, scale, layout, dtype, out_dtype, save=True, unit=unit
        )
        ctx.save_for_backward(q, k, v, g, beta, initial_state, cu_seqlens, *saved)
        ctx.scale, ctx.layout, ctx.out_dtype, ctx.unit = scale, layout, out_dtype, unit
        ctx.set_materialize_grads(False)
        return o, final

    @staticmethod
    def backward(ctx, do, dfinal):
        q, k, v, g, beta, initial_state, cu_seqlens, *saved = ctx.saved_tensors
        inputs = (q, k, v, g, beta, initial_state)
        if torch.is_grad_enabled():  # create_graph: second derivatives go through the token loop
            plain = functools.partial(_token_loop, ctx.scale, cu_seqlens, ctx.out_dtype, ctx.unit)
            grads = backward_through(plain, inputs, ctx.needs_input_grad[:6], (do, dfinal))
            return (*grads, None, None, None, None, None, None)
        do = torch.zeros_like(v) if do is None else do
        *grads, dinitial = chunk_backward(
            q, k, v, g, beta, ctx.scale, ctx.layout, saved, do, dfinal, ctx.unit, fresh=initial_state is None
        )
        dinitial = None if initial_state is None else dinitial.to(initial_state.dtype)
        return (*grads, dinitial, None, None, None, None, None, None)


def _token_loop(scale, cu_seqlens, out_dtype, unit, q, k, v, g, beta, initial_state):
    """The same function, as autograd can record it."""
    o, final = fused_recurrent_gated_delta_rule(
        q, k, v, g=g, beta=beta, scale=scale, initial_state=initial_state, output_final_state=True,
        cu_seqlens=cu_seqlens, use_qk_l2norm_in_kernel=unit,
    )  # fmt: skip
    return o.to(out_dtype), final


chunk_gdn = chunk_gated_delta_rule

"""`fused_recurrent_gated_delta_rule`: token by token, for decoding and short inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.backends.choice import choose
from myfla.backends.compiler import compiled
from myfla.backends.official import RECURRENT_GATED_DELTA_RULE
from myfla.ops.common.inplace import check_inplace, put_back
from myfla.ops.gated_delta_rule.decode import decoding_step
from myfla.ops.gated_delta_rule.fused_step import fused_step
from myfla.ops.gated_delta_rule.inputs import (
    Activation,
    check_per_token,
    check_shapes,
    count_sequences,
    is_plain_step,
    state_k_first,
    take_legacy_keywords,
)
from myfla.ops.gated_delta_rule.other_backends import naive_tokens, official_tokens
from myfla.ops.gated_delta_rule.recorded import recorded_chunks
from myfla.ops.gated_delta_rule.recurrence import recurrence
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import BackendError, message, value_error
from myfla.utils.tensors import check_scale, check_tensor
from myfla.utils.tracing import compiling, exporting, tracing

__all__ = ["fused_recurrent_gated_delta_rule", "fused_recurrent_gdn"]

NAME = "fused_recurrent_gated_delta_rule"
KEYWORDS = (
    "q", "k", "v", "g", "gk", "gv", "beta", "scale", "initial_state", "output_final_state",
    "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "A_log", "dt_bias", "use_beta_sigmoid_in_kernel",
    "allow_neg_eigval", "state_v_first", "cu_seqlens", "inplace_final_state", "backend",
)  # fmt: skip


def fused_recurrent_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor] = None,
    gk: Optional[torch.Tensor] = None,
    gv: Optional[torch.Tensor] = None,
    beta: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """The gated delta rule, one token after another; continues from a state, and trains.

    Computes what `chunk_gated_delta_rule` computes. Every token costs the same few operations on tensors of the same
    shape, so a sequence split into any number of calls gives the same bits.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``, HV a multiple of H.
        g: ``[B, T, HV]`` log decay of the whole state (or its pre-activation), none by default.
        gk: ``[B, T, HV, K]`` log decay of each key channel, none by default.
        gv: ``[B, T, HV, V]`` log decay of each value channel, none by default.
        beta: ``[B, T, HV]``, or ``[B, T, HV, V]`` for each value channel; ones by default.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written, unless ``inplace_final_state`` asks for it.
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel, use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval,
            state_v_first, cu_seqlens: as `chunk_gated_delta_rule`.
        inplace_final_state: write the final state into ``initial_state``, which must be contiguous and float32
            (float64), and return that. For decoding, where nobody else looks at the old state; not with autograd.
        backend: whose code computes, see `myfla.backends`. ``naive`` knows neither gk nor gv nor a beta for channels.
        **legacy: ``transpose_state_layout``, ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> q = k = v = torch.ones(1, 1, 1, 1)
        >>> o, state = fused_recurrent_gated_delta_rule(q, k, v, output_final_state=True)
        >>> o, state = fused_recurrent_gated_delta_rule(q, k, v, initial_state=state, output_final_state=True)
        >>> state.item()
        1.0
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    activation = Activation(
        use_qk_l2norm_in_kernel, use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval
    )
    if backend in ("auto", "torch") and gk is gv is cu_seqlens is None and not state_v_first:
        if is_plain_step(q, k, v, g, beta, initial_state, activation):
            activation.check(NAME, g, v.shape[2])
            scale = check_scale(NAME, scale, q.shape[3])
            choose(NAME, backend, RECURRENT_GATED_DELTA_RULE, q, k)  # which tells who computes
            o, final = decoding_step(initial_state, q, k, v, g, beta, scale, activation, inplace_final_state)
            return o, final if output_final_state else None
    check_shapes(NAME, q, k, v)
    key, value = k.shape[3], v.shape[3]
    for name, x, more in (("g", g, ()), ("gk", gk, (key,)), ("gv", gv, (value,))):
        if x is not None:
            check_per_token(NAME, name, x, v, *more)
    if beta is None:
        if use_beta_sigmoid_in_kernel:
            rule = "is required with use_beta_sigmoid_in_kernel=True"
            raise value_error(NAME, "beta", rule, None, "pass the pre-activation")
        beta = v.new_ones(v.shape[:3])
    check_tensor(NAME, "beta", beta)
    check_per_token(NAME, "beta", beta, v, *((value,) if beta.dim() == v.dim() else ()))
    activation.check(NAME, g, v.shape[2])
    if inplace_final_state:
        check_inplace(NAME, initial_state, q, k, v, beta, g, gk, gv, A_log, dt_bias)
    sequences = count_sequences(NAME, q, cu_seqlens)
    state = state_k_first(NAME, initial_state, k, v, sequences, state_v_first)
    scale = check_scale(NAME, scale, key)
    one_gate = gk is None and gv is None and beta.dim() == 3
    tensors = (q, k, v, beta, g, gk, gv, state)
    who_computes = choose(NAME, backend, RECURRENT_GATED_DELTA_RULE, *tensors, A_log, dt_bias)
    wanted = output_final_state or inplace_final_state
    if who_computes == "fla":
        o, final = official_tokens(q, k, v, g, beta, state, scale, activation, cu_seqlens, wanted, gk, gv)
    elif who_computes == "naive":
        o, final = _naive(*tensors, scale, activation, cu_seqlens)
    elif _is_one_step(who_computes, q, cu_seqlens):
        form = compiled(fused_step) if who_computes == "compiled" else fused_step
        o, final = form(*tensors, scale, activation, inplace_final_state)
    elif tracing(q) or who_computes == "compiled":
        form = _traced if one_gate and (cu_seqlens is not None or q.shape[1] != 1) else recurrence
        form = compiled(form) if who_computes == "compiled" else form
        o, final = form(*tensors, scale, activation, cu_seqlens)
    else:
        o, final = recurrence(*tensors, scale, activation, cu_seqlens, inplace_final_state)
    if not wanted or final is None:
        return o, None
    final = final.transpose(2, 3) if state_v_first else final
    if inplace_final_state and initial_state is not None:
        final = put_back(initial_state, final)
    else:
        final = final.contiguous()
    return o, final if output_final_state else None


def _is_one_step(who_computes: str, q: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> bool:
    """Whether a compiler for a GPU gets one token for each sequence."""
    alone = cu_seqlens is None and q.shape[1] == 1 and q.device.type == "cuda"
    return alone and (who_computes == "compiled" or (compiling() and not exporting()))


def _naive(q, k, v, beta, g, gk, gv, state, scale, activation, cu_seqlens):
    """The specification."""
    for name, x in (("gk", gk), ("gv", gv), ("beta [B, T, HV, V]", beta if beta.dim() == 4 else None)):
        if x is not None:
            hint = "leave it out, or use backend='torch'"
            raise BackendError(message(NAME, "backend", f"'naive' does not know {name}", "naive", hint))
    (q, k), (g, beta) = activation.normalise(q, k), activation.gates(g, beta)
    return naive_tokens(q, k, v, torch.zeros_like(beta) if g is None else g, beta, state, scale, cu_seqlens, v.dtype)


def _traced(q, k, v, beta, g, gk, gv, state, scale, activation, cu_seqlens):
    """Chunks: a compiled graph of the token loop would hold every token."""
    (q, k), (g, beta) = activation.normalise(q, k), activation.gates(g, beta)
    g = torch.zeros_like(beta) if g is None else g
    dtype = accumulation_dtype(q, k, v, g, beta, state)
    return recorded_chunks(q, k, v, g, beta, state, scale, cu_seqlens, dtype, v.dtype)


fused_recurrent_gdn = fused_recurrent_gated_delta_rule

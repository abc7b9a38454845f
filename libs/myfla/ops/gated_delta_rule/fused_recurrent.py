"""`fused_recurrent_gated_delta_rule`: token by token, for decoding and short inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_per_token, check_shapes, count_sequences, state_k_first, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

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
            (float64), and return that. For decoding, where nothing else uses the old state; not with autograd.
        backend: which code computes the result, see `myfla.backends`. ``naive`` has neither gk nor gv nor a beta for
            each channel.
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
    if legacy:
        state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    activation = Activation(use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    given = activation if use_gate_in_kernel or use_beta_sigmoid_in_kernel else None
    key = None
    if gk is gv is None and beta is not None:
        options = (
            scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel,
            allow_neg_eigval, inplace_final_state, state_v_first, backend,
        )  # fmt: skip
        key = call_key(NAME, options, q, k, v, g, beta, initial_state, A_log, dt_bias, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g, beta), given, initial_state, cu_seqlens)
    check_shapes(NAME, q, k, v)
    sizes = k.shape[3], v.shape[3]
    for name, x, more in (("g", g, ()), ("gk", gk, sizes[:1]), ("gv", gv, sizes[1:])):
        if x is not None:
            check_per_token(NAME, name, x, v, *more)
    if beta is None:
        if use_beta_sigmoid_in_kernel:
            rule = "is required with use_beta_sigmoid_in_kernel=True"
            raise value_error(NAME, "beta", rule, None, "pass the pre-activation")
        beta = v.new_ones(v.shape[:3])
    check_tensor(NAME, "beta", beta)
    check_per_token(NAME, "beta", beta, v, *(sizes[1:] if beta.dim() == v.dim() else ()))
    activation.check(NAME, g, v.shape[2])
    sequences = count_sequences(NAME, q, cu_seqlens)
    state_k_first(NAME, initial_state, k, v, sequences, state_v_first)
    return run_rule(
        NAME, GATED_DELTA, "recurrent", (q, k, v, g, beta), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, sequences=sequences,
        l2norm=use_qk_l2norm_in_kernel, activation=given,
        inplace=inplace_final_state, state_v_first=state_v_first, channel_decays=() if gk is gv is None else (gk, gv),
        given=(A_log, dt_bias), key=key,
    )  # fmt: skip


fused_recurrent_gdn = fused_recurrent_gated_delta_rule

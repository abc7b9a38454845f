"""`fused_recurrent_kda`: token by token, for decoding and short inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.kda import KDA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_per_token, check_shapes, count_sequences, state_k_first, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.ops.kda.inputs import KdaActivation
from myfla.utils.tensors import check_tensor

__all__ = ["fused_recurrent_kda"]

NAME = "fused_recurrent_kda"
KEYWORDS = (
    "q", "k", "v", "g", "beta", "A_log", "dt_bias", "scale", "initial_state", "output_final_state",
    "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "use_beta_sigmoid_in_kernel", "allow_neg_eigval", "lower_bound",
    "state_v_first", "cu_seqlens", "inplace_final_state", "backend",
)  # fmt: skip


def fused_recurrent_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: Optional[float] = None,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    *,
    inplace_final_state: bool = False,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Kimi Delta Attention's rule, one token after another; continues from a state, and trains.

    Computes what `chunk_kda` computes. Every token costs the same few operations on tensors of the same shape, so a
    sequence split into any number of calls gives the same bits.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``, HV a multiple of H.
        g: ``[B, T, HV, K]`` log decay of each key channel, or its pre-activation.
        beta: ``[B, T, HV]``, or ``[B, T, HV, V]`` for each value channel.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written, unless ``inplace_final_state`` asks for it.
        A_log, dt_bias, scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
            use_beta_sigmoid_in_kernel, allow_neg_eigval, lower_bound, state_v_first, cu_seqlens: as `chunk_kda`.
        inplace_final_state: write the final state into ``initial_state``, which must be contiguous and float32
            (float64), and return that. For decoding, where nothing else uses the old state; not with autograd.
        backend: which code computes the result, see `myfla.backends`. ``naive`` has no beta for each channel.
        **legacy: ``transpose_state_layout``, ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the final states in float32 (or float64), or None.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> q = k = v = torch.ones(1, 1, 1, 1); g = torch.zeros(1, 1, 1, 1); beta = torch.ones(1, 1, 1)
        >>> o, state = fused_recurrent_kda(q, k, v, g, beta, output_final_state=True)
        >>> fused_recurrent_kda(q, k, 3 * v, g, beta, initial_state=state)[0].item()
        3.0
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    activation = KdaActivation(
        use_gate_in_kernel, A_log, dt_bias, lower_bound, use_beta_sigmoid_in_kernel, allow_neg_eigval
    )
    given = activation if use_gate_in_kernel or use_beta_sigmoid_in_kernel else None
    options = (
        scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel,
        allow_neg_eigval, lower_bound, inplace_final_state, state_v_first, backend,
    )  # fmt: skip
    key = call_key(NAME, options, q, k, v, g, beta, initial_state, A_log, dt_bias, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g, beta), given, initial_state, cu_seqlens)
    check_shapes(NAME, q, k, v)
    check_per_token(NAME, "g", g, v, k.shape[3])
    check_tensor(NAME, "beta", beta)
    check_per_token(NAME, "beta", beta, v, *((v.shape[3],) if beta.dim() == v.dim() else ()))
    activation.check(NAME, g)
    sequences = count_sequences(NAME, q, cu_seqlens)
    state_k_first(NAME, initial_state, k, v, sequences, state_v_first)
    return run_rule(
        NAME, KDA, "recurrent", (q, k, v, g, beta), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=v.dtype, sequences=sequences,
        l2norm=use_qk_l2norm_in_kernel, activation=given,
        inplace=inplace_final_state, state_v_first=state_v_first, given=(A_log, dt_bias), key=key,
    )  # fmt: skip

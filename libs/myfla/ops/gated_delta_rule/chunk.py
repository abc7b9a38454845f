"""`chunk_gated_delta_rule`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_per_token, check_shapes, count_sequences, state_k_first, take_legacy_keywords
from myfla.ops.common.run_rule import run_rule
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.utils.errors import value_error

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
        backend: which code computes the result, see `myfla.backends`.
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
    if legacy:
        state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    activation = Activation(use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    given = activation if use_gate_in_kernel or use_beta_sigmoid_in_kernel else None
    options = (
        scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel,
        allow_neg_eigval, state_v_first, cp_context, chunk_size, backend,
    )  # fmt: skip
    key = call_key(NAME, options, q, k, v, g, beta, initial_state, A_log, dt_bias, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g, beta), given, initial_state, cu_seqlens)
    check_shapes(NAME, q, k, v)
    check_per_token(NAME, "g", g, v)
    check_per_token(NAME, "beta", beta, v)
    if cp_context is not None:
        raise value_error(NAME, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    activation.check(NAME, g, v.shape[2])
    sequences = count_sequences(NAME, q, cu_seqlens)
    state_k_first(NAME, initial_state, k, v, sequences, state_v_first)
    return run_rule(
        NAME, GATED_DELTA, "chunk", (q, k, v, g, beta), initial_state, cu_seqlens, scale=scale,
        output_final_state=output_final_state, backend=backend, out_dtype=q.dtype, sequences=sequences,
        l2norm=use_qk_l2norm_in_kernel, activation=given, chunk_size=chunk_size,
        state_v_first=state_v_first, key=key,
    )  # fmt: skip


chunk_gdn = chunk_gated_delta_rule

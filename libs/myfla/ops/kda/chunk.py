"""`chunk_kda`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.kda import KDA
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import check_per_token, check_shapes, count_sequences, state_k_first, take_legacy_keywords
from myfla.ops.common.chunk_states import with_chunk_states
from myfla.ops.common.run_rule import run_rule
from myfla.ops.kda.inputs import KdaActivation
from myfla.utils.errors import value_error

__all__ = ["chunk_kda"]

NAME = "chunk_kda"
KEYWORDS = (
    "q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel",
    "use_gate_in_kernel", "use_beta_sigmoid_in_kernel", "allow_neg_eigval", "safe_gate", "lower_bound",
    "disable_recompute", "return_intermediate_states", "state_v_first", "cu_seqlens", "cu_seqlens_cpu", "cp_context",
    "use_graph", "max_num_seqs", "A_log", "dt_bias", "chunk_size", "backend",
)  # fmt: skip


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: Optional[float] = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    cp_context: Any = None,
    use_graph: bool = False,
    max_num_seqs: Optional[int] = None,
    *,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[Any, ...]:
    """Kimi Delta Attention's rule, many tokens at a time.

    ``S <- diag(exp(g)) S;  S <- S + k (beta (v - S^T k))^T;  o = scale S^T q`` for every token (arXiv 2510.26692).
    Sums and states are float32, or float64 if any input is. Safe for every log decay from 0 to -inf. A NaN reaches
    back at most to the start of its chunk, and never into another sequence.

    Args:
        q, k: ``[B, T, H, K]`` queries and keys.
        v: ``[B, T, HV, V]`` values; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        g: ``[B, T, HV, K]`` log decay of each key channel, or its pre-activation with ``use_gate_in_kernel``.
        beta: ``[B, T, HV]`` write strength, or its pre-activation with ``use_beta_sigmoid_in_kernel``.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q and k to length one first.
        use_gate_in_kernel: ``g = -exp(A_log) softplus(g + dt_bias)``, or with ``lower_bound``
            ``g = lower_bound sigmoid(exp(A_log) (g + dt_bias))``.
        use_beta_sigmoid_in_kernel: ``beta = sigmoid(beta)``.
        allow_neg_eigval: ``beta = 2 sigmoid(beta)``; needs ``use_beta_sigmoid_in_kernel``.
        safe_gate: official name of a promise that decays are bounded; changes nothing here. As in fla, with
            ``use_gate_in_kernel`` it needs a ``lower_bound`` from -5 to below 0.
        lower_bound: least log decay of the gate; see ``use_gate_in_kernel``.
        disable_recompute, cu_seqlens_cpu, use_graph, max_num_seqs: official names; they choose between kernels there
            and change nothing here.
        return_intermediate_states: also return the state before every chunk of ``chunk_size`` tokens, 64 by default;
            unlike in fla, not only in inference mode.
        state_v_first: states, in and out, are ``[N, HV, V, K]``.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cp_context: must be None; there is no context parallelism.
        A_log: ``[HV]``, with ``use_gate_in_kernel``; may be None with ``lower_bound``.
        dt_bias: ``[HV * K]`` or None, with ``use_gate_in_kernel``.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``), ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in v's dtype; the final states in float32 (or float64), or None; with
        ``return_intermediate_states`` a third, ``[B, NT, HV, K, V]`` in the final states' layout and dtype: of packed
        sequences all chunks of the first, then all of the second.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> q = k = torch.ones(1, 3, 1, 2); v = torch.ones(1, 3, 1, 4)
        >>> o, state = chunk_kda(q, k, v, g=torch.zeros(1, 3, 1, 2), beta=torch.ones(1, 3, 1), output_final_state=True)
        >>> o.shape, state.shape
        (torch.Size([1, 3, 1, 4]), torch.Size([1, 1, 2, 4]))
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    activation = KdaActivation(
        use_gate_in_kernel, A_log, dt_bias, lower_bound, use_beta_sigmoid_in_kernel, allow_neg_eigval
    )
    of_op, key = activation if use_gate_in_kernel or use_beta_sigmoid_in_kernel else None, None
    if not return_intermediate_states:
        options = (
            scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel, use_beta_sigmoid_in_kernel,
            allow_neg_eigval, safe_gate, lower_bound, state_v_first, cp_context, chunk_size, backend,
        )  # fmt: skip
        key = call_key(NAME, options, q, k, v, g, beta, initial_state, A_log, dt_bias, cu_seqlens)
    plan = find_plan(key)
    if plan is not None:
        return plan((q, k, v, g, beta), of_op, initial_state, cu_seqlens)
    check_shapes(NAME, q, k, v)
    check_per_token(NAME, "g", g, v, k.shape[3])
    check_per_token(NAME, "beta", beta, v)
    if cp_context is not None:
        raise value_error(NAME, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    if safe_gate and use_gate_in_kernel and (lower_bound is None or not -5 <= lower_bound < 0):
        raise value_error(NAME, "lower_bound", "must be from -5 to below 0 with safe_gate=True", lower_bound)
    activation.check(NAME, g)
    sequences = count_sequences(NAME, q, cu_seqlens)
    state_k_first(NAME, initial_state, k, v, sequences, state_v_first)

    def compute(
        initial_state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor], wanted: bool = True,
        **x: torch.Tensor,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        return run_rule(
            NAME, KDA, "chunk", tuple(x[name] for name in KDA.inputs), initial_state, cu_seqlens, scale=scale,
            output_final_state=wanted, backend=backend, out_dtype=v.dtype, sequences=sequences,
            l2norm=use_qk_l2norm_in_kernel, activation=of_op, chunk_size=chunk_size,
            state_v_first=state_v_first, key=key,
        )  # fmt: skip

    given = dict(q=q, k=k, v=v, g=g, beta=beta)
    if not return_intermediate_states:
        return compute(initial_state, cu_seqlens, output_final_state, **given)
    o, final, states = with_chunk_states(compute, given, initial_state, cu_seqlens, chunk_size or 64)
    return o, final if output_final_state else None, states

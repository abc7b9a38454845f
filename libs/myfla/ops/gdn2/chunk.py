"""`chunk_gdn2`: the form for training and long inputs."""

from typing import Any, Optional, Tuple

import torch

from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.plans import call_key, find_plan
from myfla.ops.common.checks import take_legacy_keywords
from myfla.ops.common.chunk_states import with_chunk_states
from myfla.ops.common.run_rule import run_rule
from myfla.ops.gdn2.as_dplr import prepare
from myfla.utils.errors import value_error

__all__ = ["chunk_gdn2"]

NAME = "chunk_gdn2"
KEYWORDS = (
    "q", "k", "v", "g", "b", "w", "scale", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel",
    "use_gate_in_kernel", "cu_seqlens", "cu_seqlens_cpu", "safe_gate", "lower_bound", "disable_recompute",
    "return_intermediate_states", "state_v_first", "cp_context", "A_log", "dt_bias", "chunk_size", "backend",
)  # fmt: skip


def chunk_gdn2(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    b: torch.Tensor,
    w: torch.Tensor,
    scale: Optional[float] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    safe_gate: bool = False,
    lower_bound: Optional[float] = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cp_context: Any = None,
    *,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    chunk_size: Optional[int] = None,
    backend: str = "auto",
    **legacy: Any,
) -> Tuple[Any, ...]:
    """Gated DeltaNet 2's rule, many tokens at a time.

    ``S <- diag(exp(g)) S;  S <- S + k (w * v - S^T (b * k))^T;  o = scale S^T q`` for every token. With
    ``b = w = beta`` it is Kimi Delta Attention's. Sums and states are float32, or float64 if any input is.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, HV, V]``; HV is a multiple of H, value head i reads query head ``i // (HV / H)``.
        g: ``[B, T, HV, K]`` log decay, or its pre-activation with ``use_gate_in_kernel``.
        b: ``[B, T, HV, K]`` erase gate.
        w: ``[B, T, HV, V]`` write gate.
        scale: factor on q; ``K ** -0.5`` by default.
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token of each sequence.
        use_qk_l2norm_in_kernel: normalise q and k to length one first.
        use_gate_in_kernel: ``g = -exp(A_log) softplus(g + dt_bias)``, or with ``lower_bound``
            ``lower_bound sigmoid(exp(A_log) (g + dt_bias))``.
        cu_seqlens: ``[N + 1]`` int32 or int64, sequences packed in one row (B = 1); empty ones are fine.
        cu_seqlens_cpu, disable_recompute: official names; they change nothing here.
        safe_gate: official name of a promise that decays are bounded; changes nothing here. As in fla, with
            ``use_gate_in_kernel`` it needs a ``lower_bound`` from -5 to below 0.
        lower_bound: see above; a negative number.
        return_intermediate_states: also return the state before every chunk of ``chunk_size`` tokens, 64 by default;
            unlike in fla, not only in inference mode.
        state_v_first: states, in and out, are ``[N, HV, V, K]``.
        cp_context: must be None; there is no context parallelism.
        A_log, dt_bias: ``[HV]`` and ``[HV * K]``, with ``use_gate_in_kernel``; dt_bias may be None.
        chunk_size: tokens in a chunk, 16, 32 or 64; chosen by K and T if not given. Changes rounding only.
        backend: which code computes the result, see `myfla.backends`.
        **legacy: ``transpose_state_layout`` (old name of ``state_v_first``), ``head_first=False``.

    Returns:
        o ``[B, T, HV, V]`` in q's dtype; the final states in float32 (or float64), or None; with
        ``return_intermediate_states`` a third, ``[B, NT, HV, K, V]`` in the final states' layout and dtype: of packed
        sequences all chunks of the first, then all of the second.

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.
        TypeError: an unknown keyword.

    Example:
        >>> x = torch.ones(1, 2, 1, 1)
        >>> chunk_gdn2(x, x, 3 * x, 0 * x, x, x)[0].flatten().tolist()
        [3.0, 3.0]
    """
    state_v_first = take_legacy_keywords(NAME, legacy, state_v_first, KEYWORDS)
    key = None
    if not return_intermediate_states:
        options = (
            scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel, safe_gate, lower_bound,
            state_v_first, cp_context, chunk_size, backend,
        )  # fmt: skip
        key = call_key(NAME, options, q, k, v, g, b, w, initial_state, A_log, dt_bias, cu_seqlens)
    plan = find_plan(key)
    if cp_context is not None:
        raise value_error(NAME, "cp_context", "must be None", type(cp_context).__name__, "split the batch instead")
    if safe_gate and use_gate_in_kernel and (lower_bound is None or not -5 <= lower_bound < 0):
        raise value_error(NAME, "lower_bound", "must be from -5 to below 0 with safe_gate=True", lower_bound)
    x, dtype = prepare(
        NAME, q, k, v, g, b, w, initial_state, cu_seqlens, state_v_first, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, A_log, dt_bias, lower_bound, checked=plan is not None,
    )  # fmt: skip
    if plan is not None:
        return plan(x, None, initial_state, cu_seqlens)

    def compute(
        initial_state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor], wanted: bool = True,
        **x: torch.Tensor,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        return run_rule(
            NAME, DPLR, "chunk", tuple(x[name] for name in DPLR.inputs), initial_state, cu_seqlens, scale=scale,
            output_final_state=wanted, backend=backend, out_dtype=dtype, chunk_size=chunk_size,
            state_v_first=state_v_first, key=key,
        )  # fmt: skip

    given = dict(zip(DPLR.inputs, x))
    if not return_intermediate_states:
        return compute(initial_state, cu_seqlens, output_final_state, **given)
    o, final, states = with_chunk_states(compute, given, initial_state, cu_seqlens, chunk_size or 64)
    return o, final if output_final_state else None, states

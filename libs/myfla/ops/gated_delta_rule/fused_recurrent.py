"""`fused_recurrent_gated_delta_rule`: token by token, for decoding and short inputs."""

from typing import Any, List, NamedTuple, Optional, Tuple

import torch

from myfla.backends.choice import choose
from myfla.backends.compiler import compiled
from myfla.backends.official import RECURRENT_GATED_DELTA_RULE
from myfla.ops.common.tokens import TokenLayout
from myfla.ops.gated_delta_rule.inputs import (
    Activation,
    check_per_token,
    check_shapes,
    count_sequences,
    state_k_first,
    take_legacy_keywords,
)
from myfla.ops.gated_delta_rule.other_backends import naive_tokens, official_tokens
from myfla.ops.gated_delta_rule.recorded import recorded_chunks
from myfla.utils.autocast import without_autocast
from myfla.utils.autograd import records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import BackendError, message, value_error
from myfla.utils.l2norm import l2norm
from myfla.utils.tracing import tracing

__all__ = ["fused_recurrent_gated_delta_rule", "fused_recurrent_gdn"]

NAME = "fused_recurrent_gated_delta_rule"
KEYWORDS = (
    "q", "k", "v", "g", "gk", "gv", "beta", "scale", "initial_state", "output_final_state",
    "use_qk_l2norm_in_kernel", "use_gate_in_kernel", "A_log", "dt_bias", "use_beta_sigmoid_in_kernel",
    "allow_neg_eigval", "state_v_first", "cu_seqlens", "backend",
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
        initial_state: ``[N, HV, K, V]``, zeros by default. Never written.
        output_final_state: also return the state after the last token.
        use_qk_l2norm_in_kernel, use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval,
            state_v_first, cu_seqlens: as `chunk_gated_delta_rule`.
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
    check_per_token(NAME, "beta", beta, v, *((value,) if beta.dim() == v.dim() else ()))
    activation = Activation(
        use_qk_l2norm_in_kernel, use_gate_in_kernel, A_log, dt_bias, use_beta_sigmoid_in_kernel, allow_neg_eigval
    )
    activation.check(NAME, g, v.shape[2])
    sequences = count_sequences(NAME, q, cu_seqlens)
    state = state_k_first(NAME, initial_state, k, v, sequences, state_v_first)
    scale = key**-0.5 if scale is None else float(scale)
    one_gate = gk is None and gv is None and beta.dim() == 3
    tensors = (q, k, v, beta, g, gk, gv, state)
    who_computes = choose(NAME, backend, RECURRENT_GATED_DELTA_RULE, *tensors, A_log, dt_bias)
    if who_computes == "fla":
        o, final = official_tokens(q, k, v, g, beta, state, scale, activation, cu_seqlens, output_final_state, gk, gv)
        return o, final.transpose(2, 3).contiguous() if state_v_first and final is not None else final
    if who_computes == "naive":
        o, final = _naive(*tensors, scale, activation, cu_seqlens)
    else:
        recorded = tracing() or who_computes == "compiled"
        form = _traced if one_gate and recorded and (cu_seqlens is not None or q.shape[1] != 1) else _recurrence
        form = compiled(form) if who_computes == "compiled" else form
        o, final = form(*tensors, scale, activation, cu_seqlens)
    if not output_final_state:
        return o, None
    return o, final.transpose(2, 3).contiguous() if state_v_first else final


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


class _Token(NamedTuple):
    """One step's inputs."""

    q: torch.Tensor  # [N, H, K]
    k: torch.Tensor  # [N, H, K]
    v: torch.Tensor  # [N, HV, V]
    beta: torch.Tensor  # [N, HV] or [N, HV, V]
    g: Optional[torch.Tensor]  # [N, HV]
    gk: Optional[torch.Tensor]  # [N, HV, K]
    gv: Optional[torch.Tensor]  # [N, HV, V]


@without_autocast
def _recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    g: Optional[torch.Tensor],
    gk: Optional[torch.Tensor],
    gv: Optional[torch.Tensor],
    state: Optional[torch.Tensor],
    scale: float,
    activation: Activation,
    cu_seqlens: Optional[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulation_dtype(q, k, v, beta, g, gk, gv, state)
    layout = TokenLayout(q.shape[0], q.shape[1], cu_seqlens, q.device)
    if state is None:
        state = v.new_zeros(layout.rows, v.shape[2], k.shape[3], v.shape[3], dtype=dtype)
    state = layout.sort(state.to(dtype)).contiguous()
    tensors = [None if x is None else layout.split(x) for x in (q, k, v, beta, g, gk, gv)]
    outputs: List[torch.Tensor] = []
    done: List[torch.Tensor] = []
    recorded = tracing() or records(q, k, v, beta, g, gk, gv, state, activation.A_log, activation.dt_bias)
    for t, rows in enumerate(layout.active):
        if rows < state.shape[0]:
            done.append(state[rows:])
            state = state[:rows]
        token = _Token(*(None if x is None else x[t] for x in tensors))
        # The first step leaves the caller's state alone; later ones may write into their own.
        output, state = _step(token, state, scale, activation, dtype, in_place=t > 0 and not recorded)
        outputs.append(output.to(v.dtype))
    if done:
        state = torch.cat([state] + done[::-1])
    o = layout.merge(outputs) if outputs else torch.zeros_like(v)
    return o, layout.unsort(state)


def _step(
    token: _Token, state: torch.Tensor, scale: float, activation: Activation, dtype: torch.dtype, in_place: bool
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One token: output ``[N, HV, V]`` and the new state; writes into ``state`` only with ``in_place``."""
    g, beta = activation.gates(token.g, token.beta)
    rows, heads, key, value = state.shape
    flat = rows * heads
    state = state.view(flat, key, value)
    # Keys and queries read the old state in one product; the query's share of the update is added after.
    read = torch.stack((token.k.to(dtype), token.q.to(dtype)), dim=2)
    read = l2norm(read) if activation.l2norm else read
    if heads != read.shape[1]:
        read = read.repeat_interleave(heads // read.shape[1], dim=1)
    read = read.view(flat, 2, key)
    k = read[:, 0]
    match = (k * read[:, 1]).sum(-1, keepdim=True)
    if token.gk is not None or token.gv is not None:
        state = _decay_channels(state, token, dtype, in_place)
    found = torch.bmm(read, state)
    if g is not None:
        decay = g.to(dtype).view(flat, 1, 1).exp()
        found = found * decay
        state = state.mul_(decay) if in_place else state * decay
    beta = beta.to(dtype).reshape(flat, value if beta.dim() == 3 else 1)
    delta = beta * (token.v.to(dtype).view(flat, value) - found[:, 0])
    output = torch.addcmul(found[:, 1], match, delta) * scale
    update = (k.unsqueeze(2), delta.unsqueeze(1))
    owned = in_place or (g is not None and not state.requires_grad and not tracing())
    state = state.addcmul_(*update) if owned else torch.addcmul(state, *update)
    return output.view(rows, heads, value), state.view(rows, heads, key, value)


def _decay_channels(state: torch.Tensor, token: _Token, dtype: torch.dtype, in_place: bool) -> torch.Tensor:
    """The state after the decays of key and value channels."""
    flat, key, value = state.shape
    for log_decay, shape in ((token.gk, (flat, key, 1)), (token.gv, (flat, 1, value))):
        if log_decay is not None:
            decay = log_decay.to(dtype).view(shape).exp()
            state = state.mul_(decay) if in_place else state * decay
    return state


fused_recurrent_gdn = fused_recurrent_gated_delta_rule

"""Half-precision inputs: the float32 state is that of the float64 loop on the same inputs, within float32's rounding.

Nothing that feeds the state may be rounded to the inputs' format on its way.
"""

import pytest
import torch

import truth
from myfla.integrations import hf_rules
from myfla.ops.gated_delta_rule import (
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    naive_chunk_gated_delta_rule,
    naive_recurrent_gated_delta_rule,
)
from myfla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from myfla.testing import assert_close, cases

HALVES = [torch.bfloat16, torch.float16]
B, H, K, V = 2, 2, 16, 16
CLOSE = 2e-6  # the bound of float32 inputs
LAYOUTS = [(1, None), (5, None), (64, None), (150, None), (150, [0, 3, 3, 70, 150])]  # T, and where sequences begin
WHO = ["torch", "naive", "recorded"]


def drawn(dtype, T, cu, heads):
    """q, k, v, then gates before their activations ``[B, T, H]``, vectors kk, a, w; and states in float32."""
    torch.manual_seed(T)
    rows, T = (B, T) if cu is None else (1, cu[-1])
    shape = (rows, T, H, K)
    x = dict(
        q=torch.randn(shape), k=torch.randn(shape), v=torch.randn(rows, T, heads, V), g=torch.randn(rows, T, heads),
        beta=torch.randn(rows, T, heads), kk=torch.nn.functional.normalize(torch.randn(shape), dim=-1),
        a=torch.rand(shape), w=-0.6 * torch.rand(shape),
    )  # fmt: skip
    state = torch.randn(rows if cu is None else len(cu) - 1, heads, K, V)
    return {name: value.to(dtype) for name, value in x.items()}, state


def offsets(cu):
    return None if cu is None else torch.tensor(cu)


def call_by(who, call, x, state, cu, **options):
    """As who computes: the plain operations that a recorder sees (of one batch row in a vmap), or a backend."""
    options = dict(options, initial_state=state, cu_seqlens=offsets(cu), output_final_state=True)
    if who != "recorded":
        return call(x, backend=who, **options)
    vmap = pytest.importorskip("torch.func").vmap
    return tuple(y[0] for y in vmap(lambda given: call(given, **options))({k: v[None] for k, v in x.items()}))


GATED = {
    "chunk": chunk_gated_delta_rule, "recurrent": fused_recurrent_gated_delta_rule,
}  # fmt: skip


@cases(op=list(GATED), dtype=HALVES, layout=LAYOUTS, gated=[False, True], who=WHO)
def test_the_gated_rule(op, dtype, layout, gated, who):
    (T, cu), wanted = layout, ("q", "k", "v", "g", "beta")
    x, state = drawn(dtype, T, cu, 2 * H)
    A_log, dt_bias = torch.rand(2 * H), torch.rand(2 * H)
    if gated:
        inside = dict(use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias, use_qk_l2norm_in_kernel=True,
                      use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True)
        asked = dict(A_log=A_log, dt_bias=dt_bias, l2norm=True, sigmoid=True, neg_eigval=True)
    else:
        x["g"], x["beta"] = -x["g"].abs(), x["beta"].float().sigmoid().to(dtype)
        inside, asked = dict(use_qk_l2norm_in_kernel=True), dict(l2norm=True)
    x = {name: x[name] for name in wanted}
    _, want = truth.gated_delta_rule(**x, initial_state=state, cu_seqlens=cu, **asked)
    o, got = call_by(who, lambda given, **more: GATED[op](**given, **more), x, state, cu, **inside)
    assert o.dtype == dtype and got.dtype == torch.float32
    assert_close(got.double(), want, rms=CLOSE)


@cases(naive=[naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule], dtype=HALVES, T=[5, 64])
def test_the_specifications(naive, dtype, T):
    x, state = drawn(dtype, T, None, H)
    x["k"] = x["kk"]
    given = {name: x[name] for name in ("q", "k", "v")}
    gates = dict(g=-x["g"].abs(), beta=x["beta"].float().sigmoid().to(dtype))
    _, want = truth.gated_delta_rule(**given, **gates, initial_state=state)
    _, got = naive(**given, **gates, initial_state=state, output_final_state=True)
    assert got.dtype == torch.float32
    assert_close(got.double(), want, rms=CLOSE)


def rwkv7(op):
    def call(x, **options):
        return op(x["q"], x["w"], x["k"], x["v"], -x["kk"], x["b"], scale=1.0, **options)

    return call


def dplr(op):
    def call(x, **options):
        return op(x["q"], x["k"], x["v"], -x["kk"], x["b"], x["w"], scale=1.0, **options)

    return call


def fused_mul(x, **options):
    return fused_mul_recurrent_rwkv7(x["q"], x["w"], x["k"], x["v"], x["kk"], x["a"], **options)


DPLR = {
    "chunk_rwkv7": rwkv7(chunk_rwkv7), "recurrent_rwkv7": rwkv7(fused_recurrent_rwkv7), "fused_mul": fused_mul,
    "chunk_dplr": dplr(chunk_dplr_delta_rule), "recurrent_dplr": dplr(fused_recurrent_dplr_delta_rule),
}  # fmt: skip


@cases(op=list(DPLR), dtype=HALVES, layout=LAYOUTS, who=WHO)
def test_the_diagonal_plus_low_rank_rule(op, dtype, layout, who):
    T, cu = layout
    x, state = drawn(dtype, T, cu, H)
    exact = {name: value.double() for name, value in x.items()}
    if op != "fused_mul":  # the op is given the product, rounded; the loop multiplies kk by a
        x["b"] = (x["kk"].float() * x["a"].float()).to(dtype)
        exact["a"] = torch.where(exact["kk"] == 0, exact["kk"], x["b"].double() / exact["kk"])
    _, want = truth.rwkv7(exact["q"], exact["w"], exact["k"], exact["v"], exact["kk"], exact["a"],
                          initial_state=state, cu_seqlens=cu)
    o, got = call_by(who, DPLR[op], x, state, cu)
    assert o.dtype == dtype and got.dtype == torch.float32
    assert_close(got.double(), want, rms=CLOSE)


@cases(op=["chunk", "recurrent"], dtype=HALVES, T=[1, 5, 64, 150])
def test_kimis_rule(op, dtype, T):
    x, state = drawn(dtype, T, None, H)
    names = ("q", "k", "v", "w")
    q, k, v, w = (x[name] for name in names)
    beta = x["beta"].float().sigmoid().to(dtype)
    rule = {"chunk": hf_rules.chunk_kimi_delta_attention, "recurrent": hf_rules.recurrent_kimi_delta_attention}[op]
    _, got = rule(q, k, v, g=w, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
    want = state.double()
    wide = k.double()
    wide = wide / (wide.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    for t in range(T):
        kt, vt = wide[:, t, :, :, None], v[:, t, :, None, :].double()
        want = want * w[:, t, :, :, None].double().exp()
        want = want + kt * (beta[:, t, :, None, None].double() * (vt - (kt * want).sum(2, keepdim=True)))
    assert got.dtype == torch.float32
    assert_close(got.double(), want, rms=CLOSE)

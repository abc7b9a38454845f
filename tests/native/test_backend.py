"""``backend="native"``: honoured, or refused with the reason; seen in repr, in the description and in the log."""

import logging

import torch

from myfla.backends import choice, describe, set_backend, summary
from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.ops._delta.plans import forget_plans
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.testing import assert_close, cases, raises
from myfla.utils import native as door
from myfla.utils.errors import BackendError

LAYERS = {
    "gated_deltanet": lambda **more: GatedDeltaNet(hidden_size=24, head_dim=8, num_heads=2, layer_idx=0, **more),
    "rwkv7": lambda **more: RWKV7Attention(hidden_size=24, head_dim=8, layer_idx=0, num_hidden_layers=2, **more),
}
GATED = {"chunk": chunk_gated_delta_rule, "recurrent": fused_recurrent_gated_delta_rule}
DPLR = {"chunk": chunk_dplr_delta_rule, "recurrent": fused_recurrent_dplr_delta_rule}
CUS = {"dense": None, "packed": torch.tensor([0, 0, 5, 21, 21, 40])}


def gated(form, cu, dtype, backend):
    torch.manual_seed(1)
    B, N = (2, 2) if cu is None else (1, len(cu) - 1)
    shapes = [(B, 40, 2, 5), (B, 40, 2, 5), (B, 40, 4, 3), (B, 40, 4), (B, 40, 4), (4,), (4,), (N, 4, 3, 5)]
    leaves = [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]
    q, k, v, g, beta, A_log, dt_bias, state = leaves
    return leaves, GATED[form](
        q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True, A_log=A_log, dt_bias=dt_bias, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True,
        state_v_first=True, cu_seqlens=cu, backend=backend,
    )  # fmt: skip


def dplr(form, cu, dtype, backend):
    torch.manual_seed(1)
    B, N = (2, 2) if cu is None else (1, len(cu) - 1)
    shapes = [*[(B, 40, 2, 5)] * 4, (B, 40, 2, 3), (B, 40, 2, 5), (N, 2, 5, 3)]
    leaves = [torch.randn(*shape).mul(0.5).to(dtype).requires_grad_() for shape in shapes]
    q, k, a, b, v, gk, state = leaves
    return leaves, DPLR[form](q, k, v, a, b, -gk.square(), 0.7, initial_state=state, output_final_state=True,
                              cu_seqlens=cu, backend=backend)


@cases(rule=[gated, dplr], form=["chunk", "recurrent"], cu=list(CUS), order=[1, 2])
def test_rules_equal_float64_with_all_gradients_of_both_orders(native, rule, form, cu, order):
    found = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "naive")):
        leaves, outputs = rule(form, CUS[cu], dtype, backend)
        torch.manual_seed(2)
        loss = sum((y * torch.randn(y.shape).to(dtype)).sum() for y in outputs)
        grads = torch.autograd.grad(loss, leaves, create_graph=order == 2)
        if order == 2:
            grads = torch.autograd.grad(sum(dx.sin().sum() for dx in grads), leaves)
        found.append((*outputs, *grads))
    for i, (got, want) in enumerate(zip(*found)):
        assert_close(got, want, rms=2e-6 if i < 2 else 2e-5, name=f"{rule.__name__} {i}")


@cases(kind=list(LAYERS))
def test_the_choice_is_seen_everywhere(native, caplog, monkeypatch, kind):
    monkeypatch.setattr(choice, "_told", set())
    layer, x = LAYERS[kind](backend="native"), torch.randn(2, 9, 24)
    with caplog.at_level(logging.INFO, "myfla"):
        layer(x)
    assert "computed by backend native (asked for: native)" in caplog.text
    assert "backend=native" in repr(layer)
    choice._told.clear()
    set_backend(layer, "auto")
    assert "backend=auto (native on cpu" in repr(layer)
    with caplog.at_level(logging.INFO, "myfla"):
        layer(x)
        layer.double()(x.double())
    assert "backend native (asked for: auto)" in caplog.text and "backend torch (asked for: auto)" in caplog.text
    told = describe("cpu")
    assert told["native"] == f"usable ({native.level()}), except: float64"
    assert told["auto"].startswith("auto (native on cpu")
    assert "run on CPUs" in describe("meta")["native"]


@cases(kind=list(LAYERS))
def test_auto_native_and_torch_agree_in_training_and_streaming(native, kind):
    results = []
    for backend in ("auto", "native", "torch"):
        torch.manual_seed(0)
        layer = LAYERS[kind](backend=backend)
        y = layer(torch.randn(2, 33, 24))[0]
        y.sin().sum().backward()
        results.append([y.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)])
    for got in results[:2]:
        for a, b in zip(got, results[2]):
            assert_close(a, b, rms=1e-5, largest=1e-3)


def test_what_it_cannot_compute_is_refused_with_the_reason(native, monkeypatch):
    x = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    g = torch.zeros(1, 3, 2, dtype=torch.float64)
    with raises(BackendError, "chunk_gated_delta_rule", "native", "float64", "backend='auto'"):
        chunk_gated_delta_rule(x, x, x, g, g, backend="native")
    with raises(BackendError, "native", "meta"):
        chunk_gated_delta_rule(*(t.float().to("meta") for t in (x, x, x, g, g)), backend="native")
    x, g = x.float(), g.float()
    with raises(BackendError, "native", "value channels", "'torch'"):
        fused_recurrent_gated_delta_rule(x, x, x, gv=x, backend="native")
    assert fused_recurrent_gated_delta_rule(x, x, x, gv=x, backend="auto")[0].shape == x.shape


def step(backend, **more):
    torch.manual_seed(5)
    x, g = torch.randn(2, 1, 2, 16), -torch.rand(2, 1, 2)
    return fused_recurrent_gated_delta_rule(
        x, x, x, g=g, beta=-g, initial_state=torch.zeros(2, 2, 16, 16), output_final_state=True, backend=backend, **more
    )


def test_a_step_that_was_planned_follows_what_is_installed(native, plain, monkeypatch):
    taken, plan = [], native.rules.Plan
    monkeypatch.setattr(native.rules, "Plan", lambda *given: taken.append(1) or plan(*given))
    forget_plans()
    for count, auto in enumerate((native, None, native, None)):
        hidden = plain if auto is None else lambda run, *given: run(*given)
        for _ in range(2):
            got = hidden(step, "auto")
            for a, b in zip(got, step("torch")):
                assert_close(a, b, rms=2e-6)
        if auto is None:
            with raises(BackendError, "native", "not for this call"):
                plain(step, "native")
        else:
            step("native")
        assert len(taken) == 2, count  # for auto and for native, once each
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(step("native")[0], step("auto")[0])


def test_a_step_makes_its_result_on_the_cpu_whatever_the_default_device_is(native):
    want = step("native")
    for _ in range(2):
        with torch.device("meta"):
            x = torch.zeros(2, 1, 2, 16, device="cpu")
            o, _ = fused_recurrent_gated_delta_rule(
                x, x, x, beta=x[..., 0], initial_state=x.new_ones(2, 2, 16, 16), output_final_state=True)
        assert o.device == want[0].device and not o.any()


def test_without_the_distribution_it_is_refused_and_auto_is_torch(monkeypatch):
    monkeypatch.setattr(door, "_installed", lambda: (None, "myfla-native is not installed; pip install myfla-native"))
    with raises(BackendError, "GatedDeltaNet", "native", "pip install myfla-native"):
        LAYERS["gated_deltanet"](backend="native")
    assert summary("auto", torch.device("cpu")) == "auto (torch on cpu)"
    assert describe("cpu")["native"].startswith("not usable: myfla-native is not installed")

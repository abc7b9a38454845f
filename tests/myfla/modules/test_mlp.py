"""GatedMLP: the official size rule and names, and its formula."""

import torch
import torch.nn.functional as F

from myfla.modules.mlp import GatedMLP
from myfla.testing import assert_close, cases, raises


@cases(size=[(64, None, 256), (96, None, 256), (100, 4, 512), (2048, 4, 5632), (128, 3, 256), (1, 1, 0)])
def test_intermediate_size_follows_the_official_rule(size):
    hidden, ratio, want = size
    if not want:
        with raises(ValueError, "GatedMLP: intermediate_size must be at least 1", "got 0"):
            GatedMLP(hidden, ratio)
        return
    mlp = GatedMLP(hidden, ratio, device="meta")
    assert mlp.intermediate_size == want and mlp.hidden_ratio == (ratio or 4)
    assert {name: tuple(p.shape) for name, p in mlp.named_parameters()} == {
        "gate_proj.weight": (want, hidden), "up_proj.weight": (want, hidden), "down_proj.weight": (hidden, want)}


@cases(shape=[(5,), (2, 7, 5), (0, 5)], fused=[False, True])
def test_swish_equals_the_formula(shape, fused):
    mlp = GatedMLP(5, intermediate_size=9, fuse_swiglu=fused, dtype=torch.float64)
    x = torch.randn(*shape, dtype=torch.float64)
    w = dict(mlp.named_parameters())
    want = F.silu(x @ w["gate_proj.weight"].t()) * (x @ w["up_proj.weight"].t()) @ w["down_proj.weight"].t()
    assert_close(mlp(x, cu_seqlens=torch.tensor([0, 1])), want, rms=1e-14)


def test_powlu_equals_the_formula():
    mlp = GatedMLP(5, intermediate_size=9, hidden_act="powlu", powglu_power=2.5, dtype=torch.float64)
    x = torch.randn(40, 5, dtype=torch.float64)
    g, u = mlp.gate_proj(x), mlp.up_proj(x)
    want = torch.empty_like(g)
    for i in range(g.numel()):
        v = g.flatten()[i]
        bent = v ** (2.5 / (v.sqrt() + 1)) if v > 0 else v
        want.view(-1)[i] = bent / (1 + torch.exp(-v))
    assert_close(mlp(x), mlp.down_proj(want * u), rms=1e-13)


@cases(act=["swish", "powlu"])
def test_gradcheck_including_a_gate_of_zero(act):
    mlp = GatedMLP(3, intermediate_size=4, hidden_act=act, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)
    mlp(torch.zeros(1, 3, dtype=torch.float64)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mlp.parameters())


@cases(dtype=[torch.bfloat16])
def test_low_precision_gate_is_rounded_once(dtype):
    mlp = GatedMLP(32, intermediate_size=64, dtype=dtype)
    x = torch.randn(10, 32).to(dtype)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    want = mlp.down_proj((F.silu(gate.double()) * up.double()).to(dtype))
    assert mlp(x).dtype == dtype
    assert_close(mlp(x), want, rms=2e-3)


def test_meta_device_and_repr():
    mlp = GatedMLP(8, device="meta", dtype=torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in mlp.parameters())
    assert "hidden_act=swish" in repr(GatedMLP(8, intermediate_size=4))


def test_errors_name_the_field():
    with raises(ValueError, "GatedMLP: hidden_act must be one of ['swish', 'powlu']", "'relu'"):
        GatedMLP(8, hidden_act="relu")
    with raises(ValueError, "GatedMLP: hidden_size must be at least 1", "got 0"):
        GatedMLP(0, intermediate_size=4)
    with raises(ValueError, "GatedMLP: x must have 8 channels", "(2, 7)"):
        GatedMLP(8, intermediate_size=4)(torch.zeros(2, 7))
    with raises(TypeError, "GatedMLP: unknown keyword 'cu_seqlen'", "did you mean 'cu_seqlens'?"):
        GatedMLP(8, intermediate_size=4)(torch.zeros(2, 8), cu_seqlen=None)

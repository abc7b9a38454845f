"""The norm modules: parameters, factory arguments, repr, the linear variants, references, and every error message."""

import torch
import torch.nn.functional as F

from myfla.modules import fused_norm_gate as gated
from myfla.modules import layernorm as plain
from myfla.modules import layernorm_gated as mamba
from myfla.modules.l2norm import L2Norm, l2norm
from myfla.testing import assert_close, cases, raises

PLAIN = {"LayerNorm": False, "RMSNorm": True}
GATED = {
    "FusedLayerNormGated": False, "FusedRMSNormGated": True, "FusedLayerNormSwishGate": False,
    "FusedRMSNormSwishGate": True,
}
GATED_LINEAR = {
    "FusedLayerNormGatedLinear": False, "FusedRMSNormGatedLinear": True, "FusedLayerNormSwishGateLinear": False,
    "FusedRMSNormSwishGateLinear": True,
}
EVERY = [(plain, name) for name in (*PLAIN, "LayerNormLinear", "RMSNormLinear")]
EVERY += [(gated, name) for name in (*GATED, *GATED_LINEAR)] + [(mamba, "LayerNormGated"), (mamba, "RMSNormGated")]
NAMES = [name for _, name in EVERY] + ["GroupNorm", "GroupNormLinear"]


def _build(name, size, **kwargs):
    if name.startswith("GroupNorm"):
        return getattr(plain, name)(2, size, **kwargs)
    return getattr({n: m for m, n in EVERY}[name], name)(size, **kwargs)


def _randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@cases(name=NAMES, dtype=[torch.float32, torch.float64, torch.bfloat16])
def test_factory_arguments_reach_every_parameter(name, dtype):
    module = _build(name, 6, device="meta", dtype=dtype)
    assert all(p.is_meta and p.dtype == dtype and p.shape == (6,) for p in module.parameters())
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module.weight.tolist() == [1] * 6
    assert module.bias is None or module.bias.tolist() == [0] * 6


@cases(name=NAMES)
def test_state_dict_has_the_official_keys(name):
    want = ["weight", "bias"] if name == "LayerNormGated" else ["weight"]
    assert list(_build(name, 6).state_dict()) == want
    if "Gated" not in name and "Swish" not in name:
        assert list(_build(name, 6, bias=True).state_dict()) == ["weight", "bias"]
    if name not in ("LayerNormGated", "RMSNormGated"):
        assert not _build(name, 6, elementwise_affine=False).state_dict()


@cases(name=[*list(PLAIN), "GroupNorm"])
def test_plain_modules_call_their_function(name):
    module = _randomise(_build(name, 6, bias=True, eps=0.1))
    x, r = torch.randn(4, 6), torch.randn(4, 6)
    if name == "GroupNorm":
        want = plain.group_norm(x, module.weight, module.bias, r, 0.1, True, num_groups=2)
    else:
        function = plain.rms_norm if PLAIN[name] else plain.layer_norm
        want = function(x, module.weight, module.bias, r, 0.1, True)
    got = module(x, r, True)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@cases(name=list(GATED), activation=["swish", "sigmoid"])
def test_gated_modules_call_their_function(name, activation):
    arguments = {} if "Swish" in name else {"activation": activation}
    module = _randomise(_build(name, 6, eps=0.1, **arguments))
    x, g = torch.randn(4, 6), torch.randn(4, 6)
    function = gated.rms_norm_gated if GATED[name] else gated.layer_norm_gated
    want = function(x, g, module.weight, module.bias, arguments.get("activation", "swish"), eps=0.1)
    assert torch.equal(module(x, g), want)


def test_default_epsilon_is_that_of_fla():
    assert all(_build(name, 4).eps == 1e-5 for name in NAMES)
    x, g = torch.full((1, 4), 1e-3), torch.ones(1, 4)
    assert torch.equal(gated.rms_norm_gated(x, g, None, None), gated.rms_norm_gated(x, g, None, None, eps=1e-6))


def test_positional_order_is_that_of_fla():
    assert gated.FusedRMSNormGated(6, False, 0.5, "sigmoid").extra_repr() == (
        "6, elementwise_affine=False, eps=0.5, activation=sigmoid")
    assert gated.FusedLayerNormGated(6, True, True, "silu", 0.5).extra_repr() == (
        "6, bias=True, eps=0.5, activation=silu")
    assert repr(plain.RMSNorm(6, True, True, 0.5)) == "RMSNorm(6, bias=True, eps=0.5)"
    assert repr(plain.GroupNorm(2, 6, False, False, 0.5, True)) == (
        "GroupNorm(2, 6, elementwise_affine=False, eps=0.5, is_rms_norm=True)")
    assert repr(plain.GroupNormLinear(2, 6)) == "GroupNormLinear(2, 6, eps=1e-05)"
    assert repr(mamba.RMSNormGated(6, 0.5, 3)) == "RMSNormGated(6, eps=0.5, group_size=3, norm_before_gate=False)"
    assert repr(L2Norm()) == "L2Norm(eps=1e-06)"
    assert repr(L2Norm(output_dtype=torch.float16)) == "L2Norm(eps=1e-06, output_dtype=torch.float16)"


@cases(name=["LayerNormLinear", "RMSNormLinear", "GroupNormLinear"], prenorm=[False, True], bias=[False, True])
def test_linear_variants_equal_norm_then_linear(name, prenorm, bias):
    module, peer = _build(name, 6, bias=True), _build(name[: -len("Linear")], 6, bias=True)
    _randomise(module)
    peer.load_state_dict(module.state_dict())
    x, r, w, b = torch.randn(4, 6), torch.randn(4, 6), torch.randn(3, 6), torch.randn(3) if bias else None
    got, want = module(x, w, b, r, prenorm), peer(x, r, prenorm)
    if prenorm:
        assert torch.equal(got[1], want[1])
        got, want = got[0], want[0]
    assert_close(got, F.linear(want, w, b), rms=1e-6)
    function = getattr(plain, {"L": "layer", "R": "rms", "G": "group"}[name[0]] + "_norm_linear")
    extra = {"num_groups": 2} if name[0] == "G" else {}
    assert_close(function(x, module.weight, module.bias, w, b, r, **extra), F.linear(want, w, b), rms=1e-6)


@cases(name=list(GATED_LINEAR), dtype=[torch.float32, torch.bfloat16])
def test_gated_linear_variants_equal_norm_then_linear(name, dtype):
    module = _randomise(_build(name, 6))
    x, g, w, b = torch.randn(4, 6).to(dtype), torch.randn(4, 6).to(dtype), torch.randn(3, 6), torch.randn(3)
    norm = gated.rms_norm_gated if GATED_LINEAR[name] else gated.layer_norm_gated
    linear = gated.rms_norm_swish_gate_linear if GATED_LINEAR[name] else gated.layer_norm_swish_gate_linear
    want = F.linear(norm(x, g, module.weight, None, eps=1e-5), w.to(dtype), b.to(dtype))
    got = module(x, g, w, b)
    assert got.dtype == dtype and torch.equal(got, want)
    assert torch.equal(linear(x, g, module.weight, None, w, b, eps=1e-5), want)


@cases(upcast=[False, True], residual=[False, True], dtype=[torch.float32, torch.float64])
def test_references_equal_the_fast_functions(upcast, residual, dtype):
    x, w, b = torch.randn(4, 6, dtype=dtype), torch.randn(6, dtype=dtype), torch.randn(6, dtype=dtype)
    r = torch.randn(4, 6, dtype=dtype) if residual else None
    pairs = [
        (plain.layer_norm(x, w, b, r, 0.1, True), plain.layer_norm_ref(x, w, b, r, 0.1, True, upcast)),
        (plain.rms_norm(x, w, b, r, 0.1, True), plain.rms_norm_ref(x, w, b, r, 0.1, True, upcast)),
        (plain.group_norm(x, w, b, r, 0.1, True, num_groups=3),
         plain.group_norm_ref(x, w, b, 3, r, 0.1, False, True, upcast)),
    ]
    for got, want in pairs:
        assert_close(got[0], want[0], rms=1e-6)
        assert_close(got[1], want[1], rms=1e-6)
    z = torch.randn(4, 6, dtype=dtype)
    for first in (False, True):
        want = mamba.rms_norm_ref(x, w, b, z, 0.1, 3, first, upcast)
        assert_close(mamba.rmsnorm_fn(x, w, b, z, 0.1, 3, first), want, rms=1e-6)


def test_reference_module_equals_group_norm():
    module, peer = plain.GroupNormRef(3, 6, bias=True), plain.GroupNorm(3, 6, bias=True)
    peer.load_state_dict(_randomise(module).state_dict())
    x = torch.randn(4, 6)
    assert_close(module(x), peer(x), rms=1e-6)
    assert_close(plain.GroupNormRef(3, 6, False)(x), plain.GroupNorm(3, 6, False)(x), rms=1e-6)


def test_l2norm_module_calls_its_function():
    x = torch.randn(3, 5)
    assert torch.equal(L2Norm(0.1)(x), l2norm(x, 0.1)) and L2Norm(output_dtype=torch.float64)(x).dtype == torch.float64


def test_constructor_errors_name_the_field():
    for name in NAMES:
        with raises(ValueError, f"{name}: hidden_size must be at least 1", "got 0"):
            _build(name, 0)
    for module in (plain.GroupNorm, plain.GroupNormLinear, plain.GroupNormRef):
        with raises(ValueError, f"{module.__name__}: num_groups must divide the number of channels, 8", "got 3"):
            module(3, 8)
        with raises(ValueError, f"{module.__name__}: num_groups must divide", "got 0"):
            module(0, 8)
    for name in ("FusedLayerNormGated", "FusedRMSNormGated"):
        with raises(ValueError, f"{name}: activation must be one of ['swish', 'silu', 'sigmoid']", "'relu'"):
            _build(name, 4, activation="relu")
    with raises(ValueError, "LayerNormGated: group_size must divide the number of channels, 6", "got 4"):
        mamba.LayerNormGated(6, group_size=4)


def test_call_errors_name_the_field():
    x, w = torch.randn(2, 6), torch.ones(6)
    with raises(ValueError, "RMSNorm: weight must have shape (5,), the last axis of x", "(6,)"):
        plain.RMSNorm(6)(x[:, :5])
    with raises(ValueError, "layer_norm: bias must have shape (6,)", "(2,)"):
        plain.layer_norm(x, w, torch.zeros(2))
    with raises(ValueError, "rms_norm: residual must have the shape of x, (2, 6)", "(6,)"):
        plain.rms_norm(x, w, None, torch.zeros(6))
    with raises(ValueError, "rms_norm: x must be a floating tensor", "torch.int64"):
        plain.rms_norm(x.long(), w, None)
    with raises(ValueError, "group_norm: num_groups must divide the number of channels, 6", "got 4"):
        plain.group_norm(x, w, None, num_groups=4)
    with raises(ValueError, "FusedRMSNormGated: g must have the rows of x, (2, 6)", "(6, 2)"):
        gated.FusedRMSNormGated(6)(x, torch.ones(6, 2))
    with raises(ValueError, "rms_norm_gated: g must have the rows of x, (2, 6)", "(1, 6)"):
        gated.rms_norm_gated(x, torch.ones(1, 6), w, None)
    with raises(ValueError, "layer_norm_gated: activation must be one of", "'relu'"):
        gated.layer_norm_gated(x, x, w, None, "relu")
    with raises(ValueError, "FusedRMSNormGatedLinear: linear weight must be a tensor", "None"):
        gated.FusedRMSNormGatedLinear(6)(x, x)
    with raises(ValueError, "layer_norm_linear: linear weight must have shape [out, 6]", "(6, 5)"):
        plain.layer_norm_linear(x, w, None, torch.ones(6, 5), None)
    with raises(ValueError, "RMSNormGated: z must have the shape of x, (2, 6)", "(2, 5)"):
        mamba.RMSNormGated(6)(x, x[:, :5])
    with raises(ValueError, "rmsnorm_fn: group_size must divide the number of channels, 6", "got 4"):
        mamba.rmsnorm_fn(x, w, None, group_size=4)

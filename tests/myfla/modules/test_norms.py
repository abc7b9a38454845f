"""The norms against plain float64 formulas: values, residuals and every gradient, in all combinations."""

import torch

from myfla.modules import norm_core
from myfla.modules.fused_norm_gate import layer_norm_gated, rms_norm_gated
from myfla.modules.layernorm import group_norm, layer_norm, rms_norm
from myfla.modules.layernorm_gated import layernorm_fn, rmsnorm_fn
from myfla.testing import assert_close, cases

SHAPES = [(6,), (5, 6), (2, 4, 3, 6), (0, 6), (2, 0, 6)]


def formula(x, weight, bias, residual, eps, rms, groups=1, g=None, activation=None):
    """y and the sum that was normalised, in the number format of the arguments."""
    h = x if residual is None else x + residual
    rows = h.reshape((*h.shape[:-1], groups, h.shape[-1] // groups))
    rows = rows if rms else rows - rows.mean(-1, keepdim=True)
    y = (rows / torch.sqrt((rows * rows).mean(-1, keepdim=True) + eps)).reshape(h.shape)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    if g is not None:
        sigmoid = 1 / (1 + torch.exp(-g))
        y = y * (sigmoid if activation == "sigmoid" else g * sigmoid).reshape(y.shape)
    return y, h


def call(x, weight, bias, residual, eps, rms, groups=1, g=None, activation=None, prenorm=True):
    """The same through the library's functions."""
    if g is not None:
        function = rms_norm_gated if rms else layer_norm_gated
        return function(x, g, weight, bias, activation, residual, prenorm, eps=eps)
    if groups == 1:
        return (rms_norm if rms else layer_norm)(x, weight, bias, residual, eps, prenorm)
    return group_norm(x, weight, bias, residual, eps, prenorm, is_rms_norm=rms, num_groups=groups)


def leaf(wanted, *shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_() if wanted else None


def compare(tensors, settings, rms, dtype=torch.float64):
    """Values and gradients of `call` in ``dtype`` against `formula` in float64."""
    wide = {name: None if t is None else t.detach().double().requires_grad_() for name, t in tensors.items()}
    got, want = call(**tensors, **settings), formula(**wide, **settings)
    weights = [torch.randn_like(w) for w in want]
    got_grads, want_grads = (
        torch.autograd.grad(
            sum((out.double() * weight).sum() for out, weight in zip(outputs, weights)),
            [t for t in inputs.values() if t is not None])
        for outputs, inputs in ((got, tensors), (want, wide)))
    assert got[0].dtype == tensors["x"].dtype
    assert_close(got[0], want[0], rms=rms, name="y")
    assert_close(got[1], want[1], rms=rms, name="sum")
    for name, g, w in zip([n for n, t in tensors.items() if t is not None], got_grads, want_grads):
        assert g.dtype == tensors[name].dtype and g.shape == tensors[name].shape
        assert_close(g, w, rms=rms, name=f"gradient of {name}")


@cases(shape=SHAPES, rms=[False, True], groups=[1, 3], parameters=["", "w", "wb"], residual=[False, True])
def test_plain_norms_equal_the_formula(shape, rms, groups, parameters, residual):
    tensors = {"x": leaf(True, *shape), "weight": leaf("w" in parameters, 6), "bias": leaf("b" in parameters, 6),
               "residual": leaf(residual, *shape)}
    compare(tensors, {"eps": 0.1, "rms": rms, "groups": groups}, rms=1e-13)


@cases(shape=SHAPES, rms=[False, True], activation=["swish", "silu", "sigmoid"], parameters=["", "w", "wb"],
       residual=[False, True])
def test_gated_norms_equal_the_formula(shape, rms, activation, parameters, residual):
    tensors = {"x": leaf(True, *shape), "g": leaf(True, *shape), "weight": leaf("w" in parameters, 6),
               "bias": leaf("b" in parameters, 6), "residual": leaf(residual, *shape)}
    compare(tensors, {"eps": 0.1, "rms": rms, "activation": activation}, rms=1e-13)


@cases(dtype=[torch.float32, torch.bfloat16, torch.float16], rms=[False, True], groups=[1, 4], gated=[False, True])
def test_low_precision_is_float32_inside_and_rounded_once(dtype, rms, groups, gated):
    if gated and groups > 1:
        return
    tensors = {"x": leaf(True, 40, 32, dtype=dtype), "weight": leaf(True, 32, dtype=dtype),
               "bias": leaf(True, 32, dtype=dtype), "residual": leaf(True, 40, 32, dtype=dtype)}
    settings = {"eps": 1e-5, "rms": rms}
    if gated:
        tensors["g"], settings["activation"] = leaf(True, 40, 32, dtype=dtype), "swish"
    else:
        settings["groups"] = groups
    compare(tensors, settings, {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}[dtype])


@cases(weight=[torch.float32, torch.bfloat16], residual=[None, torch.float32, torch.bfloat16], gated=[False, True])
def test_number_formats_may_differ(weight, residual, gated):
    x, w = leaf(True, 8, 16, dtype=torch.bfloat16), leaf(True, 16, dtype=weight)
    r = None if residual is None else leaf(True, 8, 16, dtype=residual)
    g = leaf(True, 8, 16, dtype=torch.bfloat16) if gated else None
    y, h = call(x, w, None, r, 1e-5, True, g=g, activation="silu")
    (y.sum() + h.sum()).backward()
    assert y.dtype == torch.bfloat16 and h.dtype == (residual or torch.bfloat16)
    assert w.grad.dtype == weight and (r is None or r.grad.dtype == residual)


@cases(function=[layer_norm, rms_norm, group_norm], dtype=[torch.float16, torch.float32, torch.float64])
def test_residual_in_fp32_widens_what_is_handed_on(function, dtype):
    x = torch.randn(3, 8).to(dtype)
    y, h = function(x, None, None, prenorm=True, residual_in_fp32=True)
    assert y.dtype == dtype and h.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(h, x.to(h.dtype))
    r = torch.randn(3, 8).to(dtype)
    assert function(x, None, None, r, prenorm=True, residual_in_fp32=True)[1].dtype == dtype


@cases(function=[layer_norm, rms_norm, group_norm])
def test_without_residual_the_input_itself_is_handed_on(function):
    x = torch.randn(3, 8)
    assert function(x, None, None, prenorm=True)[1] is x
    assert isinstance(function(x, None, None), torch.Tensor)


@cases(rms=[False, True], groups=[1, 2], gated=[False, True])
def test_gradcheck(rms, groups, gated):
    if gated and groups > 1:
        return
    tensors = [leaf(True, 3, 4), leaf(True, 4), leaf(True, 4), leaf(True, 3, 4), leaf(gated, 3, 4)]

    def run(x, w, b, r, g=None):
        return call(x, w, b, r, 0.1, rms, groups, g, "silu" if gated else None)

    tensors = [t for t in tensors if t is not None]
    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@cases(rms=[False, True], gated=[False, True], asked=["x", "weight", "bias", "g"])
def test_only_the_asked_gradient_is_computed_and_is_the_same(rms, gated, asked):
    if asked == "g" and not gated:
        return
    tensors = {"x": leaf(True, 5, 4), "weight": leaf(True, 4), "bias": leaf(True, 4)}
    if gated:
        tensors["g"] = leaf(True, 5, 4)
    extra = {"residual": None, "eps": 0.1, "rms": rms, "activation": "sigmoid" if gated else None, "prenorm": False}
    whole = torch.autograd.grad(call(**tensors, **extra).square().sum(), tensors[asked])[0]
    alone = {name: t if name == asked else t.detach() for name, t in tensors.items()}
    assert torch.equal(torch.autograd.grad(call(**alone, **extra).square().sum(), alone[asked])[0], whole)


@cases(rms=[False, True], gated=[False, True])
def test_values_without_autograd_are_the_same(rms, gated):
    args = [torch.randn(3, 8), torch.randn(8), torch.randn(8), None, 1e-5, rms, 1]
    g = torch.randn(3, 8) if gated else None
    want = call(*args, g=g, activation="silu", prenorm=False)
    with torch.no_grad():
        assert torch.equal(call(*args, g=g, activation="silu", prenorm=False), want)


def test_rows_are_independent():
    x, g, w = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    want = rms_norm_gated(x, g, w, None)
    x[2], g[2] = float("nan"), float("inf")
    got = rms_norm_gated(x, g, w, None)
    assert torch.equal(got[[0, 1, 3]], want[[0, 1, 3]]) and torch.isnan(got[2]).all()


@cases(scale=[1e-8, 1e8])
def test_gradient_survives_small_and_large_input(scale):
    x, w = (torch.randn(5, 16) * scale).requires_grad_(), torch.randn(16)
    g, do = torch.randn(5, 16), torch.randn(5, 16)
    wide = x.detach().double().requires_grad_()
    rms_norm_gated(x, g, w, None).backward(do)
    formula(wide, w.double(), None, None, 1e-6, True, g=g.double())[0].backward(do.double())
    assert_close(x.grad, wide.grad, rms=1e-5)


def test_any_memory_layout_gives_the_same():
    x, g = torch.randn(6, 4, 8), torch.randn(8, 4, 6)
    strided, gate = x.transpose(0, 1), g.permute(1, 2, 0)
    want = rms_norm_gated(strided.contiguous(), gate.contiguous(), torch.ones(8), None)
    assert_close(rms_norm_gated(strided, gate, torch.ones(8), None), want, rms=1e-6)
    leaf_x = strided.detach().requires_grad_()
    rms_norm_gated(leaf_x, gate, torch.ones(8), None).sum().backward()
    plain = strided.contiguous().requires_grad_()
    rms_norm_gated(plain, gate.contiguous(), torch.ones(8), None).sum().backward()
    assert_close(leaf_x.grad, plain.grad, rms=1e-5)


def test_gate_may_have_other_leading_axes():
    x, g = torch.randn(2, 3, 4, 8), torch.randn(24, 8, requires_grad=True)
    y = rms_norm_gated(x, g, None, None)
    assert torch.equal(y, rms_norm_gated(x, g.view(2, 3, 4, 8), None, None))
    y.sum().backward()
    assert g.grad.shape == (24, 8)


@cases(rms=[False, True], first=[False, True], group=[None, 2, 6], gated=[False, True], bias=[False, True])
def test_mamba_style_norms_equal_the_formula(rms, first, group, gated, bias):
    x, w, z = leaf(True, 5, 6), leaf(True, 6), leaf(gated, 5, 6)
    b = leaf(bias, 6)
    function = rmsnorm_fn if rms else layernorm_fn
    got = function(x, w, b, z, 0.1, group, first)
    gate = 1 if z is None else z * torch.sigmoid(z)
    want = formula(x if first else x * gate, w, b, None, 0.1, rms, 6 // (group or 6))[0] * (gate if first else 1)
    assert_close(got, want, rms=1e-14)
    leaves = [t for t in (x, w, b, z) if t is not None]
    do = torch.randn_like(want)
    for g, v in zip(torch.autograd.grad((got * do).sum(), leaves), torch.autograd.grad((want * do).sum(), leaves)):
        assert_close(g, v, rms=1e-13)


@cases(centred=[False, True], groups=[1, 3], gated=[False, True])
def test_the_formula_of_compilers_and_second_derivatives_is_the_norm(centred, groups, gated):
    x, gate = 3 + torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    weight, bias = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    settings = norm_core.Settings(1e-5, centred, groups, "swish", x.dtype)
    given = (x, gate if gated else None, weight, bias, settings)
    assert_close(norm_core._formula(*given), norm_core._forward(*given)[0], rms=1e-14)

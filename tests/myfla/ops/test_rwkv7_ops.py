"""RWKV-7's ops beside the recurrence: mixing, keys, gate, channel mixing; and the recurrence under its names."""

import torch

import truth
from dplr_cases import make
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from myfla.ops.rwkv7 import fused_addcmul as addcmul_module
from myfla.ops.rwkv7 import key_gates as key_gates_module
from myfla.ops.rwkv7.channel_mixing import (
    channel_mixing_rwkv7,
    channel_mixing_rwkv7_torch,
    rwkv_relu_and_square_torch,
    squared_relu,
)
from myfla.ops.rwkv7.fused_addcmul import fused_addcmul_rwkv7, torch_addcmul_rwkv7
from myfla.ops.rwkv7.fused_k_update import fused_k_rwkv7, k_update_ref
from myfla.ops.rwkv7.gate_output_correction import (
    gate_output_correction,
    gate_output_correction_backward,
    gate_output_correction_backward_ref,
    gate_output_correction_backward_triton,
    gate_output_correction_ref,
)
from myfla.ops.rwkv7.key_gates import key_gates
from myfla.ops.rwkv7.value_residual import mix_values
from myfla.testing import assert_close, cases, raises

HALF = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-3}


def draw(*shapes, dtype=torch.float64):
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]


def both(function, reference, inputs, rms, weight_seed=0):
    """A function and its reference in float64: outputs and gradients of a random functional of them."""
    sides = []
    for form, kind in ((function, None), (reference, torch.float64)):
        leaves = [x.detach().to(kind or x.dtype).requires_grad_() for x in inputs]
        outputs = form(*leaves)
        outputs = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None]
        torch.manual_seed(weight_seed)
        # Weights that the inputs' format can hold, so that nothing is rounded on the way in.
        weights = [torch.randn(x.shape, dtype=torch.float64).to(inputs[0].dtype).double() for x in outputs]
        total = sum((x.double() * weight).sum() for x, weight in zip(outputs, weights))
        sides.append((outputs, torch.autograd.grad(total, leaves)))
    for got, want in zip(*(outputs for outputs, _ in sides)):
        assert got.dtype == inputs[0].dtype
        assert_close(got, want, rms=rms)
    for i, (got, want) in enumerate(zip(*(grads for _, grads in sides))):
        assert got.shape == inputs[i].shape and got.dtype == inputs[i].dtype
        assert_close(got, want, rms=rms, name=f"gradient {i}")


@cases(dtype=list(HALF), with_g=[False, True], tokens=[1, 40], vectors=[(1, 1, 24), (24,)])
def test_addcmul_equals_its_reference(dtype, with_g, tokens, vectors):
    """In half precision too: the gradients of hidden and delta are summed before they are rounded."""
    inputs = draw((2, tokens, 24), (2, tokens, 24), *[vectors] * (6 if with_g else 5), dtype=dtype)
    both(fused_addcmul_rwkv7, torch_addcmul_rwkv7, inputs, HALF[dtype])
    assert (fused_addcmul_rwkv7(*inputs)[5] is None) == (not with_g)


def test_addcmul_works_in_blocks_and_writes_nothing():
    inputs = draw((2, 37, 24), (2, 37, 24), *[(24,)] * 6)
    before, block = [x.detach().clone() for x in inputs], addcmul_module.BLOCK
    try:
        addcmul_module.BLOCK = 100
        both(fused_addcmul_rwkv7, torch_addcmul_rwkv7, inputs, 1e-12)
    finally:
        addcmul_module.BLOCK = block
    sum(x.sum() for x in fused_addcmul_rwkv7(*inputs)).backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


def test_addcmul_with_some_outputs_unused():
    inputs = draw((1, 3, 4), (1, 3, 4), *[(4,)] * 6)
    grads = torch.autograd.grad(fused_addcmul_rwkv7(*inputs)[2].sum(), inputs)
    want = torch.autograd.grad(torch_addcmul_rwkv7(*inputs)[2].sum(), inputs, allow_unused=True)
    for got, expected in zip(grads, want):
        assert_close(got, torch.zeros_like(got) if expected is None else expected, rms=1e-12)


@cases(dtype=list(HALF), shape=[(24,), (1, 1, 24)], tokens=[1, 40])
def test_key_update_equals_its_reference(dtype, shape, tokens):
    both(fused_k_rwkv7, k_update_ref, draw((2, tokens, 24), (2, tokens, 24), shape, dtype=dtype), HALF[dtype])


@cases(dtype=list(HALF), value=[4, 7, 12])
def test_gate_equals_its_reference(dtype, value):
    """Key and value sizes may differ."""
    shapes = (2, 9, 3 * value), (2, 9, 3, 4), (2, 9, 3, 4), (3, 4), (2, 9, 3, value), (2, 9, 3 * value)
    inputs = draw(*shapes, dtype=dtype)
    both(gate_output_correction, gate_output_correction_ref, inputs, 2 * HALF[dtype])
    grad = torch.randn(shapes[0]).to(dtype)
    for got, want in zip(gate_output_correction_backward(grad, *inputs), gate_output_correction_backward_ref(
            *(x.double() for x in (grad, *inputs)))):
        assert_close(got, want, rms=2 * HALF[dtype])
    assert gate_output_correction_backward_triton is gate_output_correction_backward


@cases(inplace=[True, False], last=[2, 3], dtype=[torch.float64, torch.bfloat16])
def test_channel_mixing_equals_its_reference(inplace, last, dtype):
    inputs = draw((2, 7, 8), (2, 8) if last == 2 else (2, 1, 8), (1, 1, 8), (8, 12), (12, 8), dtype=dtype)
    before = [x.detach().clone() for x in inputs]
    both(lambda *x: channel_mixing_rwkv7(*x, inplace), channel_mixing_rwkv7_torch, inputs,
         1e-12 if dtype == torch.float64 else 2e-2)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))
    assert torch.equal(channel_mixing_rwkv7(*inputs)[1], inputs[0][-1])  # the last row of the batch, as officially


def test_squared_relu_and_value_mix_equal_their_references():
    both(squared_relu, rwkv_relu_and_square_torch, draw((3, 5)), 1e-12)
    for dtype, rms in HALF.items():
        inputs = draw(*[(2, 5, 4)] * 3, dtype=dtype)
        both(mix_values, lambda v, first, gate: torch.lerp(v, first, gate.sigmoid()), inputs, rms)


@cases(eps=[None, 1e-6], dtype=list(HALF), block=[50, 1 << 16])
def test_key_gates_equal_their_reference(eps, dtype, block):
    def reference(k, w, a, k_k, k_a):
        heads, rate = (2, 5, 3, 4), a.sigmoid()
        kk = (k * k_k).view(heads)
        kk = torch.nn.functional.normalize(kk, dim=-1) if eps is None else (
            kk * (kk.square().sum(-1, keepdim=True) + eps).rsqrt())
        decay = -0.6065306597126334 * w.sigmoid()
        return decay.view(heads), k_update_ref(k, rate, k_a).view(heads), -kk, kk * rate.view(heads)

    inputs = draw(*[(2, 5, 12)] * 3, (12,), (12,), dtype=dtype)
    before = addcmul_module.BLOCK
    try:
        addcmul_module.BLOCK = block
        both(lambda *x: key_gates(*x, 4, eps), reference, inputs, 2 * HALF[dtype])
    finally:
        addcmul_module.BLOCK = before


@cases(eps=[None, 1e-6])
def test_key_gates_in_plain_operations_equal_the_fast_ones(eps):
    """What compilers, exporters and second derivatives see."""
    inputs = draw(*[(2, 5, 12)] * 3, (12,), (12,), dtype=torch.float64)
    for plain, fast in zip(key_gates_module._formula(*inputs, 4, eps), key_gates(*inputs, 4, eps)):
        assert_close(plain, fast, 1e-13)


def test_a_key_of_nothing_removes_nothing():
    for eps in (None, 1e-6):
        k, rest = torch.zeros(1, 1, 4, requires_grad=True), torch.ones(1, 1, 4)
        _, key, remove, replace = key_gates(k, rest, rest, torch.ones(4), torch.ones(4), 4, eps)
        (key + 2 * remove + 3 * replace).sum().backward()
        assert not key.any() and not remove.any() and not replace.any()
        assert torch.isfinite(k.grad).all() and k.grad.abs().max() <= 1e4


def test_small_functions_pass_gradcheck():
    (x, y, z), six = draw(*[(2, 3, 4)] * 3), draw(*[(4,)] * 6)
    check = torch.autograd.gradcheck
    assert check(fused_addcmul_rwkv7, (x, y, *six)) and check(fused_k_rwkv7, (x, y, six[0]))
    assert check(lambda *t: key_gates(*t, 2, None), (x, y, z, *six[:2]))
    assert check(mix_values, (x, y, z))
    assert check(gate_output_correction, draw((1, 2, 6), (1, 2, 2, 2), (1, 2, 2, 2), (2, 2), (1, 2, 2, 3), (1, 2, 6)))
    assert check(channel_mixing_rwkv7, draw((2, 3, 4), (2, 4), (4,), (4, 5), (5, 4)))


def test_rwkv7_names_and_official_defaults():
    given = make(T=11)
    r, w, k, v, kk, a = (given[name] for name in ("r", "w", "k", "v", "kk", "a"))
    want, state = truth.rwkv7(r, w, k, v, kk, a)
    o, none = chunk_rwkv7(r, w, k, v, -kk, kk * a)  # scale 1, no state
    assert_close(o, want, rms=1e-12)
    assert none is None
    o, final = fused_recurrent_rwkv7(r, w, k, v, -kk, kk * a)  # scale K ** -0.5, with the state
    assert_close(o, want / 4, rms=1e-12)
    assert_close(final, state, rms=1e-12)
    o, none = fused_mul_recurrent_rwkv7(r, w, k, v, kk, a)
    assert_close(o, want, rms=1e-12)
    assert none is None and o.grad_fn is None
    assert_close(fused_mul_recurrent_rwkv7(r, w, k, v, kk, a, scale=None)[0], want / 4, rms=1e-12)
    assert fused_mul_recurrent_rwkv7(r.clone().requires_grad_(), w, k, v, kk, a)[0].requires_grad
    with raises(TypeError, "head_first"):
        chunk_rwkv7(r, w, k, v, -kk, kk * a, head_first=False)


def test_wrong_shapes_are_refused_by_name():
    x = torch.randn(2, 3, 4)
    with raises(ValueError, "fused_addcmul_rwkv7: delta must have the shape of hidden_states, (2, 3, 4)", "(2, 2, 4)"):
        fused_addcmul_rwkv7(x, x[:, 1:], *[x[0, 0]] * 6)
    with raises(ValueError, "fused_k_rwkv7: a must have the shape of k, (2, 3, 4)", "(2, 3, 3)"):
        fused_k_rwkv7(x, x[..., 1:], x[0, 0])
    four = torch.randn(2, 3, 2, 2)
    with raises(ValueError, "gate_output_correction: r_k must have shape [H, K] = (2, 2)", "(2, 3)"):
        gate_output_correction(x, four, four, torch.randn(2, 3), four, x)
    with raises(ValueError, "channel_mixing_rwkv7: x must have shape [B, T, D]", "(3, 4)"):
        channel_mixing_rwkv7(x[0], x[0], x[0, 0], x[0].t(), x[0])
    for op, names in ((chunk_rwkv7, "rwkvab"), (fused_recurrent_rwkv7, "rwkvab")):
        for i in (1, 2, 4, 5):
            wrong = [four] * i + [four[:, 1:]] + [four] * (5 - i)
            with raises(ValueError, f"{op.__name__}: {names[i]} must have the shape of r, (2, 3, 2, 2)"):
                op(*wrong)
    with raises(ValueError, "fused_mul_recurrent_rwkv7: a must have the shape of r, (2, 3, 2, 2)"):
        fused_mul_recurrent_rwkv7(four, four, four, four, four, four[:, 1:])
    with raises(ValueError, "chunk_rwkv7: chunk_size must be 16, 32 or 64; got 8"):
        chunk_rwkv7(*[four] * 6, chunk_size=8)

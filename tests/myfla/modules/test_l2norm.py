"""`l2norm`: unit length, the official place of eps, exact gradients, every number format."""

import torch

from myfla.testing import assert_close, cases, raises
from myfla.utils.l2norm import l2norm, l2norm_bwd, l2norm_fwd


def _truth(x, eps=1e-6):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + eps)


@cases(shape=[(5,), (3, 7), (2, 9, 3, 24), (0, 4), (2, 1, 3)], eps=[1e-6, 1e-3, 2.0])
def test_values_and_gradient_equal_the_formula(shape, eps):
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    do = torch.randn(*shape, dtype=torch.float64)
    y = l2norm(x, eps)
    assert_close(y, _truth(x, eps), rms=1e-14)
    (got,) = torch.autograd.grad((y * do).sum(), x)
    (want,) = torch.autograd.grad((_truth(x, eps) * do).sum(), x)
    assert_close(got, want, rms=1e-13)


def test_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: l2norm(t, 1e-2), x)


@cases(dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype):
    x = torch.randn(4, 6, 32).to(dtype).requires_grad_()
    do = torch.randn(4, 6, 32).to(dtype)
    wide = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad((_truth(wide) * do.double()).sum(), wide)
    y = l2norm(x)
    (got,) = torch.autograd.grad((y.double() * do.double()).sum(), x)
    bound = {torch.float32: 3e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert y.dtype == got.dtype == dtype
    assert_close(y, _truth(wide), rms=bound)
    assert_close(got, want, rms=bound)


def test_zero_vector_gives_zero_and_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    y = l2norm(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert_close(x.grad, torch.full((2, 4), 1e3), rms=1e-5)


def test_strided_input_equals_contiguous():
    x = torch.randn(5, 3, 7).transpose(0, 2)
    assert torch.equal(l2norm(x), l2norm(x.contiguous()))


@cases(output=[torch.float32, torch.float64, torch.bfloat16])
def test_output_dtype_is_obeyed(output):
    x = torch.randn(3, 8, dtype=torch.float16, requires_grad=True)
    y = l2norm(x, output_dtype=output)
    y.float().sum().backward()
    assert y.dtype == output and x.grad.dtype == torch.float16


def test_low_level_pair_equals_autograd():
    x = torch.randn(2, 5, 8, requires_grad=True)
    do = torch.randn(2, 5, 8)
    y, rstd = l2norm_fwd(x.detach())
    assert rstd.shape == (2, 5) and rstd.dtype == torch.float32
    out = l2norm(x)
    out.backward(do)
    assert torch.equal(y, out)
    assert_close(l2norm_bwd(y, rstd, do), x.grad, rms=1e-6)


def test_second_derivative_equals_finite_differences():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: l2norm(t, 1e-2), x)


@cases(scale=[1e-12, 1e-3, 1e12])
def test_gradient_survives_short_and_long_vectors(scale):
    x = (torch.randn(4, 16) * scale).requires_grad_()
    do = torch.randn(4, 16)
    l2norm(x).backward(do)
    wide = x.detach().double().requires_grad_()
    _truth(wide).backward(do.double())
    assert_close(x.grad, wide.grad, rms=1e-6)


def test_integer_input_is_refused():
    with raises(ValueError, "l2norm: x must be a floating tensor", "torch.int64"):
        l2norm(torch.ones(3, dtype=torch.int64))

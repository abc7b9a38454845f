"""Convolution, norms, l2norm and token shift by compiled kernels: equal to float64, whoever computes them."""

import functools

import pytest
import torch

import native_modules
from myfla.modules.convolution import ShortConvolution
from myfla.testing import cases
from native_guard import guarded_results

LEVELS = ["base", "avx2", "avx512"]


@cases(kind=native_modules.KINDS, level=LEVELS)
def test_random_calls_equal_float64_with_all_gradients(native, monkeypatch, kind, level):
    if native.set_level(level) != level:
        pytest.skip(f"this processor has no {level}")
    for seed in range(40):
        native_modules.check(kind, seed, functools.partial(guarded_results, monkeypatch))


@cases(kind=native_modules.KINDS)
def test_the_compiled_kernels_are_what_is_tested(native, monkeypatch, kind):
    """A wrong number from the library is seen by the test above."""
    name = {"conv": "conv_forward", "shift": "shift_forward"}.get(kind, "norm_forward")
    right = getattr(native, name)

    def wrong(*args, **kwargs):
        y, *rest = right(*args, **kwargs)
        return (y if y is None or not y.numel() else y * 1.01, *rest)

    monkeypatch.setattr(native, name, wrong)
    with pytest.raises(AssertionError):
        for seed in range(10):
            native_modules.check(kind, seed)


@cases(threads=[2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(native, threads):
    def run():
        torch.manual_seed(0)
        conv, x = ShortConvolution(40, 4, bias=True), torch.randn(2, 3000, 40, requires_grad=True)
        h, g, w = (torch.randn(*shape, requires_grad=True) for shape in ((5000, 3, 48), (5000, 3, 48), (48,)))
        y, state = conv(x, output_final_state=True)
        n = native_modules.normalise("test", h, w, None, None, 1e-5, False, False, False, 1, g, "swish")
        s, last = native_modules.token_shift(x, output_cache=True)
        grads = torch.autograd.grad((y.sin().sum() + n.sin().sum() + s.sin().sum()), [x, *conv.parameters(), h, g, w])
        return [y, state, n, s, last, *grads]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(threads)
        many = run()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, many):
        assert torch.equal(a, b)


def test_a_step_continues_a_sequence_to_the_bit(native):
    conv, x = ShortConvolution(33, 4), torch.randn(2, 9, 33)
    with torch.no_grad():
        whole, end = conv(x, output_final_state=True)
        cache, parts = None, []
        for t in range(9):
            y, cache = conv(x[:, t : t + 1], cache=cache, output_final_state=True)
            parts.append(y)
    assert torch.equal(torch.cat(parts, 1), whole) and torch.equal(cache, end)


def test_second_derivatives_and_transforms_keep_the_plain_form(native):
    conv, x = ShortConvolution(5, 4), torch.randn(1, 6, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(conv(x)[0].sin().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()
    func = pytest.importorskip("torch.func")
    want = torch.stack([conv(row)[0] for row in x.detach().unsqueeze(1)])
    torch.testing.assert_close(func.vmap(lambda row: conv(row)[0])(x.detach().unsqueeze(1)), want)

"""What a layer's training step is made of, as calls of the compiled package: products, convolutions that go back in
place, and everything between the projections."""

import pytest
import torch

from myfla.testing import assert_close, cases
from native_guard import between_guards

LEVELS = ["base", "avx2", "avx512"]


@cases(level=LEVELS, threads=[1, 3])
def test_products_of_any_size_equal_float64(native, level, threads):
    if native.set_level(level) != level:
        pytest.skip(f"this processor has no {level}")
    torch.manual_seed(5)
    sizes = [(1, 1, [1]), (3, 17, [5, 1]), (30, 300, [6, 20]), (70, 40, [33, 1100]), (600, 33, [16, 12, 4]),
             (13, 2100, [40])]  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for M, D, rows in sizes:
            x, weights = between_guards(torch.randn(M, D)), [between_guards(torch.randn(n, D)) for n in rows]
            y, dx = between_guards(torch.zeros(M, sum(rows)), 5), torch.empty(M, D)
            dw = [torch.empty(n, D) for n in rows]
            native.products.outputs(x, weights, y)
            exact = torch.cat(weights).double()
            assert_close(y, x.double() @ exact.t(), rms=1e-6, largest=2e-5)
            native.products.inputs(y, weights, dx)
            assert_close(dx, y.double() @ exact, rms=1e-6, largest=2e-5)
            native.products.weights(y, x, dw)
            assert_close(torch.cat(dw), y.double().t() @ x.double(), rms=1e-6, largest=2e-5)
    finally:
        torch.set_num_threads(before)


@cases(taps=[1, 3, 4], threads=[1, 3], tokens=[1, 64, 65, 700])
def test_a_convolution_goes_back_in_place_to_the_same_bits(native, taps, threads, tokens):
    torch.manual_seed(6)
    x, dy, weight = torch.randn(2, tokens, 40), torch.randn(2, tokens, 48)[..., :40], torch.randn(40, taps)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        want, *others = native.conv_backward(dy, x, weight)
        got, *same = native.conv_backward(dy, x, weight, into=dy)
    finally:
        torch.set_num_threads(before)
    assert got is dy and torch.equal(got, want) and all(a is b or torch.equal(a, b) for a, b in zip(others, same))


@cases(threads=[2, 3])
def test_any_number_of_threads_gives_the_same_bits_between_projections(native, threads):
    m = native.middle.Middle(2, 4, 16, 24, 4, True, native.rules.KDA, 1, "swish", 0.25, None, 1e-5)
    before, found = torch.get_num_threads(), []
    torch.manual_seed(7)
    given = [torch.randn(3, 300, size) for size in (32, 32, 96, 96, 64, 4)]
    parameters = [*(torch.randn(size, 1, 4) for size in (32, 32, 96)), None, None, torch.randn(96), torch.randn(4),
                  torch.randn(64), torch.randn(24)]  # fmt: skip
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            places, made = [native.middle.place(x) for x in given], [torch.empty_like(x) for x in given]
            of = [None if x is None else torch.empty_like(x) for x in parameters]
            y, kept = native.middle.forward(m, 3, 300, places, parameters)
            into = [native.middle.place(x) for x in made]
            native.middle.backward(m, places, parameters, kept, y, torch.empty_like(y), into, of)
            found.append([y, *made, *(x for x in of if x is not None)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))

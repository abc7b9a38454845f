"""Random calls of the compiled module kernels, each with its truth in float64 and all gradients."""

import random

import torch

from myfla.modules.convolution import causal_conv1d
from myfla.modules.l2norm import l2norm
from myfla.modules.norm_core import normalise
from myfla.modules.token_shift import token_shift
from myfla.testing import assert_close
from myfla.utils import native as door
from native_guard import between_guards

# (result, gradients): float32 as the reliability bars; halves are rounded once, to 8 and 11 bits.
BARS = {torch.float32: (2e-6, 1e-5), torch.bfloat16: (4e-3, 6e-3), torch.float16: (5e-4, 1e-3)}
KINDS = ("conv", "norm", "l2norm", "shift")


def offsets(pick, tokens):
    """Packed sequences, empty ones too, or None."""
    if pick.random() < 0.5:
        return None
    cuts = sorted(pick.choice(range(tokens + 1)) for _ in range(pick.randint(0, 5)))
    return torch.tensor([0, *cuts, tokens], dtype=pick.choice([torch.int32, torch.int64]))


def tensor(pick, *shape, dtype):
    """A leaf between guards, at times with gaps between its rows, or with channels that lie apart."""
    x = torch.randn(*shape).to(dtype)
    how = pick.random()
    if how < 0.2 and len(shape) > 1:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    return between_guards(x, pick.choice([0, 0, 3])).requires_grad_()


def conv(pick, dtype):
    cu, B, T = None, pick.choice([1, 2, 3]), pick.choice([0, 1, 2, 3, 5, 31, 33, 70, 200])
    D, W = pick.choice([1, 3, 16, 17, 40, 64]), pick.choice([1, 2, 3, 4, 4, 4, 7, 16])
    if pick.random() < 0.5 and T:
        B, cu = 1, offsets(pick, T)
    N = B if cu is None else len(cu) - 1
    other = pick.choice([dtype, torch.float32])
    made = [
        tensor(pick, B, T, D, dtype=dtype), tensor(pick, D, W, dtype=other),
        tensor(pick, D, dtype=other) if pick.random() < 0.5 else None,
        tensor(pick, B, T, D, dtype=dtype) if pick.random() < 0.3 else None,
        tensor(pick, N, D, W, dtype=other) if pick.random() < 0.5 else None,
    ]  # fmt: skip
    activation = pick.choice(["silu", None])

    def call(x, weight, bias, residual, state):
        return causal_conv1d(x, weight, bias, residual, state, True, activation, cu_seqlens=cu)

    return made, call, True


def norm(pick, dtype):
    groups = pick.choice([1, 1, 2, 5])
    size = pick.choice([1, 3, 5, 8, 16, 20, 64, 100])
    D = groups * size
    shape = (pick.choice([0, 1, 3]), pick.choice([1, 4, 33, 300]), D)
    other = pick.choice([dtype, torch.float32])
    made = [
        tensor(pick, *shape, dtype=dtype), tensor(pick, D, dtype=other) if pick.random() < 0.7 else None,
        tensor(pick, D, dtype=other) if pick.random() < 0.4 else None,
        tensor(pick, *shape, dtype=dtype) if pick.random() < 0.3 else None,
        tensor(pick, *shape, dtype=dtype) if pick.random() < 0.6 else None,
    ]  # fmt: skip
    centred, prenorm, activation = pick.random() < 0.5, pick.random() < 0.5, pick.choice(["silu", "swish", "sigmoid"])

    def call(x, weight, bias, residual, gate):
        y = normalise("fuzz", x, weight, bias, residual, 1e-5, prenorm, False, centred, groups, gate, activation)
        return y if isinstance(y, tuple) else (y,)

    return made, call, size >= 5


def unit(pick, dtype):
    size = pick.choice([1, 5, 16, 64, 65])
    made = [tensor(pick, pick.choice([0, 1, 5]), pick.choice([1, 40]), size, dtype=dtype)]
    return made, lambda x: (l2norm(x),), size >= 5


def shift(pick, dtype):
    cu, B, T = None, pick.choice([1, 2, 3]), pick.choice([0, 1, 2, 3, 33, 200])
    D = pick.choice([1, 3, 16, 17, 40])
    if pick.random() < 0.5 and T:
        B, cu = 1, offsets(pick, T)
    N = B if cu is None else len(cu) - 1
    cache = tensor(pick, N, D, dtype=dtype) if pick.random() < 0.5 else None
    return [tensor(pick, B, T, D, dtype=dtype), cache], lambda x, cache: token_shift(x, cu, cache, True), True


MAKERS = {"conv": conv, "norm": norm, "l2norm": unit, "shift": shift}


def results(call, made, weights):
    """What a call gives, and the gradients of all its tensors."""
    outputs = [y for y in call(*made) if y is not None]
    given = [x for x in made if x is not None]
    loss = sum((y.to(w.dtype) * w).sum() for y, w in zip(outputs, weights))
    return outputs, torch.autograd.grad(loss, given, allow_unused=True)


def check(kind, seed, guard=None):
    """One random call: equal to float64 in results and gradients, with autograd and without.

    Args:
        kind: one of `KINDS`.
        seed: of everything that is random.
        guard: a context in which results lie between guards.
    """
    pick = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    dtype = pick.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    # Of very short rows a norm leaves next to nothing of the gradient: what float32 has then is its own rounding.
    made, call, has_gradient = MAKERS[kind](pick, dtype)
    exact = [None if x is None else x.detach().double().requires_grad_() for x in made]
    with torch.no_grad():
        weights = [torch.randn(y.shape, dtype=torch.float64) for y in call(*exact) if y is not None]
    want, want_gradients = results(call, exact, weights)
    with guard() if guard else torch.enable_grad():
        got, gradients = results(call, made, weights)
        with torch.no_grad():
            alone = [y for y in call(*made) if y is not None]
    forward, backward = BARS[dtype]
    for i, (y, same, truth) in enumerate(zip(got, alone, want)):
        assert_close(y, truth, rms=forward, largest=20 * forward, name=f"{kind} {seed} result {i}")
        assert torch.equal(y, same), f"{kind} {seed} result {i} without autograd"
    for i, (dx, truth) in enumerate(zip(gradients, want_gradients) if has_gradient else ()):
        if truth is None or not truth.any():
            assert dx is None or not dx.any(), f"{kind} {seed} gradient {i} should be zero"
        else:
            # A few sums over many tokens may all be small by chance; their errors are not.
            bar = backward * (10 if truth.numel() < 8 else 1)
            try:
                assert_close(dx, truth, rms=bar, largest=20 * bar, name=f"{kind} {seed} gradient {i}")
            except AssertionError:
                plain = without_kernels(results, call, made, weights)[1][i]
                if not distance(dx, truth) <= distance(plain, truth):
                    raise


def without_kernels(function, *given, **named):
    """What a function gives where the compiled kernels are not installed."""
    installed = door._installed
    door._installed = lambda: (None, "not for this call")
    try:
        return function(*given, **named)
    finally:
        door._installed = installed


def distance(x, truth):
    """Of a result from the truth, as a vector."""
    return float((x.detach().double() - truth).norm())

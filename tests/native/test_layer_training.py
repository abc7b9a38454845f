"""A layer under autograd with everything between its projections in one call of the compiled kernels, and with its
projections in the same function: equal to float64, and to the layer operation by operation."""

import contextlib
import copy
import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from myfla.backends import choice, set_backend
from myfla.layers import native_training, short_convs
from myfla.models.utils import Cache
from myfla.modules import FusedRMSNormGated, ShortConvolution
from myfla.testing import assert_close, cases
from native_guard import guarded_results
from native_layers import TRAINED, WAYS
from native_modules import BARS

SHAPES = {"short": (2, 5), "long": (1, 150), "batch": (3, 70), "one token": (4, 1)}
LEVELS = ["base", "avx2", "avx512"]


@pytest.fixture
def taken(native, monkeypatch):
    """The ways of the calls that were not computed operation by operation; products pay, whatever the processor."""
    monkeypatch.setattr(native.products, "products_pay", lambda: True)
    seen = []

    def watched(way, run):
        def call(*given):
            y = run(*given)
            if y is not None:
                seen.append(way)
            return y

        return call

    for way in WAYS:
        monkeypatch.setattr(native_training, f"_{way}", watched(way, getattr(native_training, f"_{way}")))
    return seen


@pytest.fixture
def build(native, monkeypatch):
    """A function that makes the layer of a case, and lets products pay or not."""

    def make(name):
        (kind, settings), way = TRAINED[name if name in TRAINED else f"{name}, whole"]
        monkeypatch.setattr(native.products, "products_pay", lambda: way == "whole")
        torch.manual_seed(3)
        layer = kind(layer_idx=0, **settings)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        return layer

    return make


def data(layer, shape, dtype=torch.float32):
    torch.manual_seed(4)
    x, weight = torch.randn(2, *shape, layer.hidden_size).to(dtype)
    return x.requires_grad_(), weight


def step(layer, shape, **more):
    """The output, and the gradients of the input and of all parameters."""
    x, weight = data(layer, shape, layer.o_proj.weight.dtype)
    y = layer(x, **more)[0]
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])]


def apart(monkeypatch, run, *given):
    with monkeypatch.context() as context:
        context.setattr(short_convs, "train_conv_layer", lambda *_: None)
        return run(*given)


def check(got, truth):
    """Equal to float64 up to the bars of a result and of gradients (`native_modules`)."""
    for i, (a, exact) in enumerate(zip(got, truth)):
        assert a.dtype == torch.float32 and a.shape == exact.shape
        bar = BARS[torch.float32][i > 0]
        assert_close(a, exact, rms=bar, largest=30 * bar)


@cases(name=list(TRAINED), shape=list(SHAPES))
def test_one_function_equals_float64_and_the_layer_op_by_op(taken, build, monkeypatch, name, shape):
    layer = build(name)
    got, truth = step(layer, SHAPES[shape]), step(copy.deepcopy(layer).double(), SHAPES[shape])
    assert taken == [TRAINED[name][1]]
    check(got, truth)
    check(apart(monkeypatch, step, layer, SHAPES[shape]), truth)


@cases(name=["plain, whole", "odd sizes, grouped, whole", "odd sizes, grouped, between",
             "bias, three taps, no gate, whole", "kda, bounded, grouped"], level=LEVELS)  # fmt: skip
def test_every_level_keeps_within_its_buffers(taken, build, native, monkeypatch, name, level):
    if native.set_level(level) != level:
        pytest.skip(f"this processor has no {level}")
    layer = build(name)
    with guarded_results(monkeypatch):
        got = step(layer, (3, 70))
    assert taken
    check(got, step(copy.deepcopy(layer).double(), (3, 70)))


OFFSETS = torch.tensor([0, 3, 3, 70, 199, 200])
MASK = torch.arange(200).view(2, 100) % 7 != 3
PACKED = {
    "packed rows": ((1, 200), {"cu_seqlens": OFFSETS}),
    "a mask": ((2, 100), {"attention_mask": MASK}),
    "offsets of 32 bits": ((1, 200), {"cu_seqlens": OFFSETS.int()}),
}


@cases(how=list(PACKED), name=["plain, whole", "odd sizes, grouped, between", "bias, three taps, no gate, whole",
                               "kda, bounded, grouped"])  # fmt: skip
def test_packed_and_padded_rows_equal_float64(taken, build, monkeypatch, name, how):
    layer, (shape, more) = build(name), PACKED[how]
    with guarded_results(monkeypatch):
        got = step(layer, shape, **more)
    assert taken == [TRAINED[name][1]]
    check(got, step(copy.deepcopy(layer).double(), shape, **more))


def test_offsets_may_change_between_forward_and_backward(taken, build):
    layer, offsets = build("plain"), OFFSETS.clone()
    x, weight = data(layer, (1, 200))
    want = torch.autograd.grad((layer(x, cu_seqlens=offsets)[0] * weight).sum(), x)[0]
    y = layer(x, cu_seqlens=offsets)[0]
    offsets += 10**6
    assert torch.equal(torch.autograd.grad((y * weight).sum(), x)[0], want) and len(taken) == 2


@cases(name=["plain, whole", "delta, gate, whole"], threads=[2, 3])
def test_any_number_of_threads_gives_the_same_bits(taken, build, name, threads):
    layer, before, found = build(name), torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(step(layer, (4, 300)))
    finally:
        torch.set_num_threads(before)
    assert taken == ["whole"] * 2 and all(torch.equal(a, b) for a, b in zip(*found))


SECOND = ["plain, whole", "plain, between", "bias, three taps, no gate, whole", "delta, whole", "kda, bounded, grouped"]


@cases(name=SECOND, packed=[False, True])
def test_second_derivatives_equal_those_of_float64(taken, build, name, packed):
    layer = build(name)

    def second(layer):
        x, weight = data(layer, (1, 18) if packed else (3, 9), layer.o_proj.weight.dtype)
        y = layer(x, cu_seqlens=torch.tensor([0, 5, 5, 18]) if packed else None)[0]
        (dx,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
        return torch.autograd.grad((dx * weight.flip(1)).sum(), [x, *layer.parameters()], allow_unused=True)

    got, truth = second(layer), second(copy.deepcopy(layer).double())
    assert taken
    for a, exact in zip(got, truth):
        assert (a is None) == (exact is None)
        if exact is not None and exact.any():
            assert_close(a, exact, rms=1e-6 if name.endswith("whole") else 5e-5, largest=1e-3)


@cases(name=["plain, whole", "plain, between"])
def test_a_graph_may_be_used_twice_and_computed_again(taken, build, name):
    layer = build(name)
    x, weight = data(layer, (2, 40))
    loss = (layer(x)[0] * weight).sum()
    first, second = (torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True) for _ in range(2))
    y = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    third = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
    # Of what is computed again, newer versions stop at the last tensor that they need.
    assert len(taken) == (2 if hasattr(torch.utils.checkpoint, "set_checkpoint_early_stop") else 3)
    for a, b, c in zip(first, second, third):
        assert torch.equal(a, b) and torch.equal(a, c)


@cases(
    name=["plain, whole", "plain, between"],
    frozen=["q_proj", "the projections", "o_proj", "all but the input", "the input"],
)
def test_what_needs_no_gradient_gets_none_and_changes_no_other(taken, build, name, frozen):
    layer = build(name)
    x, weight = data(layer, (2, 20))
    (layer(x)[0] * weight).sum().backward()
    want = [x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad(set_to_none=True)
    x.grad = None
    for name, parameter in layer.named_parameters():
        projection = name.split(".")[0] in ("q_proj", "k_proj", "v_proj", "g_proj", "a_proj", "b_proj")
        if frozen in name or (frozen == "the projections" and projection) or frozen == "all but the input":
            parameter.requires_grad_(False)
    x.requires_grad_(frozen != "the input")
    (layer(x)[0] * weight).sum().backward()
    assert len(taken) == 2
    given = [x, *layer.parameters()]
    for t, dt in zip(given, want):
        assert (t.grad is None) == (not t.requires_grad)
        assert t.grad is None or torch.equal(t.grad, dt)


@cases(name=["bias, three taps, no gate, whole", "kda"])
def test_gradients_share_no_memory(taken, build, name):
    layer = build(name)
    x, weight = data(layer, (2, 20))
    for _ in range(2):
        (layer(x)[0] * weight).sum().backward()
    places = {p.grad.data_ptr() for p in layer.parameters()}
    sizes = [p.grad for p in layer.parameters()]
    assert len(places) == len(sizes)
    if hasattr(torch.Tensor, "untyped_storage"):
        assert all(g.untyped_storage().nbytes() == 4 * g.numel() for g in sizes)


def lora(layer):
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    layer.v_proj.__class__ = Own


def another_method(layer):
    class Own(type(layer)):
        def _output(self, x, o):
            return super()._output(x, o) * 2

    layer.__class__ = Own


def bottleneck(layer):
    return nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 64))


CHANGES = {
    "a method of a subclass": (another_method, None),
    "a method of its own": (lambda layer: vars(layer).update(_project=layer._project), None),
    "a hook of a projection": (lambda layer: layer.k_proj.register_forward_hook(lambda *_: None), None),
    "a hook of a convolution": (lambda layer: layer.q_conv1d.register_forward_pre_hook(lambda *_: None), None),
    "a hook of the norm": (lambda layer: layer.o_norm.register_forward_hook(lambda *_: None), None),
    "a hook of the last map": (lambda layer: layer.o_proj.register_forward_hook(lambda *_: None), "between"),
    "another projection": (lora, None),
    "a bias": (lambda layer: setattr(layer, "b_proj", nn.Linear(64, 2)), "between"),
    "two maps": (lambda layer: setattr(layer, "g_proj", bottleneck(layer)), "between"),
    "another forward": (lambda layer: vars(layer.k_proj).update(forward=layer.k_proj.forward), None),
    "a spectral norm": (lambda layer: nn.utils.spectral_norm(layer.q_proj), None),
    "another activation": (lambda layer: setattr(layer, "q_conv1d", ShortConvolution(32, 4, activation=None)), None),
    "backend torch": (lambda layer: set_backend(layer, "torch"), None),
    "bfloat16": (lambda layer: layer.bfloat16(), None),
    "float64": (lambda layer: layer.double(), None),
}


@cases(change=list(CHANGES))
def test_what_is_not_as_built_goes_apart(taken, build, monkeypatch, change):
    layer, (apply, way) = build("plain"), CHANGES[change]
    step(layer, (2, 9))
    assert taken == ["whole"]
    taken.clear()
    apply(layer)
    got = step(layer, (2, 9))
    assert taken == ([] if way is None else [way])
    if way is not None:
        for a, b in zip(got, apart(monkeypatch, step, layer, (2, 9))):
            assert_close(a, b, rms=1e-5, largest=1e-4)


def test_hooks_see_what_they_saw(taken, build):
    layer, seen = build("plain"), []
    layer.g_proj.register_forward_hook(lambda module, given, y: seen.append(y.shape) or y * 0)
    got, truth = step(layer, (2, 9)), step(copy.deepcopy(layer).double(), (2, 9))
    assert not taken and len(seen) == 2
    check(got[:1], truth[:1])


CALLS = {
    "a cache": lambda layer, x: layer(x, past_key_values=Cache(), use_cache=True),
    "nothing to record": lambda layer, x: torch.no_grad()(layer)(x),
    "an empty batch": lambda layer, x: layer(x[:0]),
    "autocast": lambda layer, x: torch.autocast("cpu", torch.bfloat16)(layer)(x),
}


@cases(call=list(CALLS))
def test_other_calls_go_op_by_op(taken, build, call):
    layer = build("plain")
    x = data(layer, (2, 4))[0]
    CALLS[call](layer, x)
    assert not taken
    layer(x)
    assert taken


WRONG = {
    "projection": lambda layer: setattr(layer, "v_proj", nn.Linear(64, 32, bias=False)),
    "gate": lambda layer: setattr(layer, "b_proj", nn.Linear(64, 1, bias=False)),
    "taps": lambda layer: setattr(layer, "k_conv1d", ShortConvolution(32, 2)),
    "norm": lambda layer: setattr(layer, "o_norm", FusedRMSNormGated(8)),
    "vector": lambda layer: setattr(layer, "A_log", nn.Parameter(torch.zeros(1))),
    "last": lambda layer: setattr(layer, "o_proj", nn.Linear(32, 64, bias=False)),
    "strided taps": lambda layer: setattr(
        layer.q_conv1d, "weight", nn.Parameter(torch.randn(4, 1, 32).transpose(0, 2))),
}


@cases(name=["plain, whole", "plain, between"], wrong=list(WRONG))
def test_parts_that_do_not_fit_are_never_handed_to_the_kernels(taken, build, name, wrong):
    layer = build(name)
    WRONG[wrong](layer)
    with contextlib.suppress(ValueError, RuntimeError):
        layer(data(layer, (2, 4))[0])
    assert not taken


@cases(name=["plain, whole", "kda"])
def test_inputs_of_any_layout(taken, build, monkeypatch, name):
    layer = build(name)
    one, many, wide = (torch.randn(*size, layer.hidden_size) for size in ((1, 4), (9, 2), (2, 9, 3)))
    for x in (one.transpose(0, 1), many.transpose(0, 1), wide[:, :, 1]):
        want = apart(monkeypatch, lambda x: torch.autograd.grad(layer(x)[0].sum(), layer.q_proj.weight)[0], x)
        got = torch.autograd.grad(layer(x)[0].sum(), layer.q_proj.weight)[0]
        assert_close(got, want, rms=1e-5, largest=1e-4)
    assert len(taken) == 3


@cases(backend=["auto", "native"])
def test_it_is_told_once(taken, build, caplog, monkeypatch, backend):
    monkeypatch.setattr(choice, "_told", set())
    layer = build("plain")
    set_backend(layer, backend)
    with caplog.at_level(logging.INFO, "myfla"):
        for _ in range(2):
            step(layer, (2, 9))
    told = f"GatedDeltaNet in training on cpu: computed by backend native (asked for: {backend})"
    assert caplog.text.count(told) == 1

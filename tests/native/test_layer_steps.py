"""A layer's decoding step by one call of the compiled kernels: equal to the layer op by op, and to float64."""

import contextlib
import copy
import logging

import pytest
import torch

from myfla.backends import choice, set_backend
from myfla.layers import (
    Comba,
    DeltaNet,
    GatedDeltaNet,
    GatedDeltaNet2,
    GatedDeltaProduct,
    KimiDeltaAttention,
    RWKV7Attention,
)
from myfla.layers import native_steps as door
from myfla.models.state_tree import tensors_of
from myfla.models.utils import Cache
from myfla.modules import FusedRMSNormGated, GroupNorm, ShortConvolution
from myfla.ops._delta.plans import forget_plans
from myfla.testing import assert_close, cases
from native_guard import guarded_results
from native_layers import CONV_LAYERS

GATED, RWKV = GatedDeltaNet, RWKV7Attention
LAYERS = {
    "plain": (GATED, {"hidden_size": 64, "head_dim": 32, "num_heads": 2}),
    "odd sizes, grouped": (GATED, {"hidden_size": 20, "head_dim": 7, "num_heads": 2, "num_v_heads": 6, "expand_v": 2}),
    **CONV_LAYERS,
    "kda": (KimiDeltaAttention, {"hidden_size": 48, "head_dim": 16, "num_heads": 3, "allow_neg_eigval": True}),
    "kda, bounded, grouped": (KimiDeltaAttention, {
        "hidden_size": 40, "head_dim": 7, "num_heads": 2, "num_v_heads": 4, "expand_v": 2, "lower_bound": -4.0,
        "conv_bias": True}),
    "product": (GatedDeltaProduct, {"hidden_size": 64, "head_dim": 32, "num_heads": 2}),
    "product, odd, grouped": (GatedDeltaProduct, {
        "hidden_size": 20, "head_dim": 7, "num_heads": 2, "num_v_heads": 6, "num_householder": 3, "conv_bias": True}),
    "product, one, no gates": (GatedDeltaProduct, {
        "hidden_size": 40, "head_dim": 16, "num_heads": 2, "num_householder": 1, "use_output_gate": False,
        "use_forget_gate": False, "allow_neg_eigval": False}),
    "product, no decay": (GatedDeltaProduct, {
        "hidden_size": 40, "head_dim": 16, "num_heads": 2, "use_forget_gate": False}),
    "comba": (Comba, {"hidden_size": 64, "head_dim": 32, "num_heads": 2}),
    "comba, odd, grouped": (Comba, {
        "hidden_size": 20, "head_dim": 7, "num_heads": 2, "num_v_heads": 6, "use_output_correction": False,
        "conv_bias": True}),
    "comba, plain": (Comba, {
        "hidden_size": 40, "head_dim": 16, "num_heads": 2, "use_inner_decay": False, "use_output_gate": False,
        "correction_factor": 0.3}),
    "gdn2": (GatedDeltaNet2, {"hidden_size": 64, "head_dim": 32, "num_heads": 2}),
    "gdn2, odd, grouped": (GatedDeltaNet2, {
        "hidden_size": 20, "head_dim": 7, "num_heads": 2, "num_v_heads": 6, "expand_v": 2, "allow_neg_eigval": True,
        "conv_bias": True}),
    "rwkv7, first": (RWKV, {"hidden_size": 64, "head_dim": 32, "layer_idx": 0, "fuse_norm": True}),
    "rwkv7": (RWKV, {"hidden_size": 40, "head_dim": 8, "value_dim": 60}),
    "rwkv7, odd": (RWKV, {"hidden_size": 42, "head_dim": 6, "elementwise_affine": False}),
}  # fmt: skip
BITS = [name for name, (kind, _) in LAYERS.items() if kind in (GATED, DeltaNet, KimiDeltaAttention)]
BARS = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
STEPS = ("plan_conv_layer", "rwkv7_mix_step", "plan_rwkv7_layer")


def build(name, dtype=torch.float32):
    kind, settings = LAYERS[name]
    torch.manual_seed(3)
    more = {"num_hidden_layers": 2} if kind is RWKV else {}
    layer = kind(**{"layer_idx": 1, **more, **settings}, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float32).to(parameter.dtype) * 0.2)
    return layer


def decode(layer, inplace=False, rows=3, before=5, steps=4, rounded=torch.float32):
    """Outputs of a few tokens together and of some one by one, and the states after."""
    torch.manual_seed(4)
    dtype = layer.o_proj.weight.dtype
    sizes = (layer.hidden_size, layer.value_dim)
    x, first = (torch.randn(before + steps, rows, 1, size).to(rounded).to(dtype) for size in sizes)

    def more(v_first):
        return {"v_first": v_first} if isinstance(layer, RWKV) and layer.layer_idx else {}

    cache, outputs = Cache(), []
    with torch.no_grad():
        start, start_first = (t[:before].squeeze(2).transpose(0, 1) for t in (x, first))
        outputs.append(layer(start, past_key_values=cache, use_cache=True, **more(start_first))[0])
        cache = cache.in_place() if inplace else cache
        outputs.extend(layer(x[i], past_key_values=cache, use_cache=True, **more(first[i]))[0]
                       for i in range(before, before + steps))
    state = cache[layer.layer_idx]
    conv = state["conv_state"]
    return [torch.cat(outputs, 1), state["recurrent_state"], *(conv if isinstance(conv, tuple) else (conv,))]


@pytest.fixture
def taken(native, monkeypatch):
    """Names of the calls of the kernels for whole steps."""
    seen = []
    watch(native, monkeypatch, lambda name, run, given: seen.append(name) or run(*given))
    yield seen
    forget_plans()


def watch(native, monkeypatch, see):
    """``see(name, run, given)`` stands between the layers and the kernels for whole steps."""
    forget_plans()
    for name in STEPS:
        run = getattr(native.steps, name)

        def planned(*given, run=run, name=name):
            step = run(*given)
            return lambda *tensors: see(name, step, tensors)

        plans = name.startswith("plan")
        see_it = planned if plans else (lambda *given, run=run, name=name: see(name, run, given))
        monkeypatch.setattr(native.steps, name, see_it)


def op_by_op(monkeypatch, run, *given, **named):
    with monkeypatch.context() as context:
        context.setattr(door, "_step_kernels", lambda *_: None)
        return run(*given, **named)


@cases(name=list(LAYERS), dtype=list(BARS), inplace=[False, True])
def test_a_step_is_one_call_and_equals_op_by_op_and_float64(taken, monkeypatch, name, dtype, inplace):
    layer = build(name, dtype)
    got = decode(layer, inplace, rounded=dtype)
    assert taken == (["rwkv7_mix_step", "plan_rwkv7_layer"] if isinstance(layer, RWKV) else ["plan_conv_layer"]) * 4
    want = op_by_op(monkeypatch, decode, layer, inplace, rounded=dtype)
    assert len(taken) in (4, 8)
    truth = decode(copy.deepcopy(layer).double(), rounded=dtype)
    for a, b, exact in zip(got, want, truth):
        assert a.dtype == b.dtype and a.shape == b.shape
        if name in BITS:
            assert torch.equal(a, b)
        assert_close(a, exact, rms=BARS[dtype], largest=30 * BARS[dtype])


@cases(name=list(LAYERS), level=["base", "avx2", "avx512"])
def test_every_level_keeps_within_its_buffers(taken, native, monkeypatch, name, level):
    if native.set_level(level) != level:
        pytest.skip(f"this processor has no {level}")
    layer = build(name)
    with guarded_results(monkeypatch):
        got = decode(layer)
    assert taken
    for a, exact in zip(got, decode(copy.deepcopy(layer).double())):
        assert_close(a, exact, rms=2e-6, largest=6e-5)


@cases(name=["plain", "odd sizes, grouped", "product", "comba", "gdn2", "rwkv7"], threads=[2, 3])
def test_any_number_of_threads_gives_the_same_bits(native, monkeypatch, name, threads):
    calls = []
    watch(native, monkeypatch, lambda _, run, given: calls.append((run, given)) or run(*given))
    decode(build(name), rows=64, steps=1)
    forget_plans()
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append([list(tensors_of([run(*given), list(given)])) for run, given in list(calls)])
    finally:
        torch.set_num_threads(before)
    assert calls and all(torch.equal(a, b) for one, many in zip(*found) for (_, a), (_, b) in zip(one, many))


@cases(name=["plain", "product", "comba", "gdn2", "rwkv7"], inplace=[False, True])
def test_only_the_recurrent_state_of_a_cache_in_place_is_written_over(taken, name, inplace):
    layer, cache = build(name), Cache()
    first = {"v_first": torch.randn(2, 6, layer.value_dim)} if isinstance(layer, RWKV) else {}
    one = {key: t[:, :1].contiguous() for key, t in first.items()}
    with torch.no_grad():
        layer(torch.randn(2, 6, layer.hidden_size), past_key_values=cache, use_cache=True, **first)
        cache = cache.in_place() if inplace else cache
        state = cache[layer.layer_idx]
        recurrent, conv = state["recurrent_state"], state["conv_state"]
        conv = conv if isinstance(conv, tuple) else (conv,)
        was = [t.clone() for t in (recurrent, *conv)]
        layer(torch.randn(2, 1, layer.hidden_size), past_key_values=cache, use_cache=True, **one)
    assert taken and torch.equal(recurrent, was[0]) != inplace
    assert (cache[layer.layer_idx]["recurrent_state"] is recurrent) == inplace
    assert all(torch.equal(t, old) for t, old in zip(conv, was[1:]))


def norm_of(layer):
    return layer.o_norm if hasattr(layer, "o_norm") else layer.g_norm


def with_a_hook(layer):
    norm_of(layer).register_forward_hook(lambda *_: None)


def with_another_norm(layer):
    name = "o_norm" if hasattr(layer, "o_norm") else "g_norm"
    old = getattr(layer, name)
    setattr(layer, name, type("Own", (type(old),), {})(*((2, 64) if name == "g_norm" else (64,))))


CHANGES = {
    "a hook": with_a_hook,
    "another norm": with_another_norm,
    "another forward": lambda layer: vars(norm_of(layer)).update(forward=norm_of(layer).forward),
    "backend torch": lambda layer: set_backend(layer, "torch"),
    "training": lambda layer: layer.train(),
    "float64": lambda layer: layer.double(),
}


@cases(name=["plain", "product", "comba", "rwkv7, first"], change=list(CHANGES))
def test_what_is_not_as_built_goes_op_by_op(taken, name, change):
    layer = build(name)
    decode(layer)
    assert taken
    taken.clear()
    CHANGES[change](layer)
    decode(layer)
    assert "plan_conv_layer" not in taken and "plan_rwkv7_layer" not in taken


@cases(name=["kda", "product", "comba", "gdn2"], method=["gates", "_mix"], where=["class", "layer"])
def test_a_method_of_ones_own_is_called(taken, name, method, where):
    """In a class derived from the layer's, or set on the layer."""
    layer, seen = build(name), []

    def own(self, *given):
        seen.append(1)
        return getattr(LAYERS[name][0], method)(self, *given)

    if where == "class":
        layer.__class__ = type("Own", (type(layer),), {method: own})
    else:
        setattr(layer, method, lambda *given: own(layer, *given))
    decode(layer, steps=2)
    assert len(seen) == (0 if (name, method) == ("kda", "gates") else 3) and not taken


WRONG = {
    "projection": lambda layer: setattr(layer, "v_proj", torch.nn.Linear(64, 32, bias=False)),
    "gate": lambda layer: setattr(layer, "b_proj", torch.nn.Linear(64, 1, bias=False)),
    "taps": lambda layer: setattr(layer, "k_conv1d", ShortConvolution(64, 2)),
    "norm": lambda layer: setattr(layer, "o_norm", FusedRMSNormGated(8)),
    "vector": lambda layer: setattr(layer, "A_log", torch.nn.Parameter(torch.zeros(1))),
}
WRONG_MIX = {
    "comba, inner": lambda layer: setattr(layer, "decay", torch.nn.Parameter(torch.zeros(1))),
    "comba, output": lambda layer: setattr(layer, "D", torch.nn.Parameter(torch.zeros(3))),
    "gdn2, erase": lambda layer: setattr(layer, "b_proj", torch.nn.Linear(64, 32, bias=False)),
    "gdn2, write": lambda layer: setattr(layer, "w_proj", torch.nn.Linear(64, 32, bias=False)),
    "gdn2, vector": lambda layer: setattr(layer, "dt_bias", torch.nn.Parameter(torch.zeros(2))),
    "product, beta": lambda layer: setattr(layer, "b_proj", torch.nn.Linear(64, 2, bias=False)),
    "product, keys": lambda layer: setattr(layer, "k_proj", torch.nn.Linear(64, 64, bias=False)),
}
WRONG7 = {
    "projection": lambda layer: setattr(layer, "v_proj", torch.nn.Linear(64, 32, bias=False)),
    "mixture": lambda layer: setattr(layer, "x_a", torch.nn.Parameter(torch.zeros(1, 1, 32))),
    "key gate": lambda layer: setattr(layer, "k_k", torch.nn.Parameter(torch.zeros(3))),
    "norm": lambda layer: setattr(layer, "g_norm", GroupNorm(2, 32)),
}


@cases(name=[*WRONG, *WRONG_MIX, *(f"rwkv7 {name}" for name in WRONG7)])
def test_parts_that_do_not_fit_are_never_handed_to_the_kernels(taken, name):
    seven = name.startswith("rwkv7")
    layer, cache = build("rwkv7, first" if seven else name.partition(",")[0] if name in WRONG_MIX else "plain"), Cache()
    with torch.no_grad():
        for _ in range(2):
            layer(torch.randn(2, 1, 64), past_key_values=cache, use_cache=True)
        taken.clear()
        (WRONG7[name[6:]] if seven else {**WRONG, **WRONG_MIX}[name])(layer)
        with contextlib.suppress(ValueError, RuntimeError):
            layer(torch.randn(2, 1, 64), past_key_values=cache, use_cache=True)
    assert "plan_conv_layer" not in taken and "plan_rwkv7_layer" not in taken
    assert "mixture" not in name or not taken


@cases(name=["plain", "product", "comba", "gdn2", "rwkv7, first"])
def test_packed_rows_autocast_and_gradients_go_op_by_op(taken, name):
    layer, x = build(name), torch.randn(1, 1, 64)
    cache = Cache()
    with torch.no_grad():
        layer(x, past_key_values=cache, use_cache=True)
        layer(x, past_key_values=cache, use_cache=True, cu_seqlens=torch.tensor([0, 1]))
        layer(x, past_key_values=cache)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x, past_key_values=Cache(), use_cache=True)
    layer(x, past_key_values=cache, use_cache=True)
    assert not taken


@cases(name=["plain", "rwkv7, first"])
def test_a_hook_for_all_modules_sees_every_map_and_norm_once_a_call(taken, name):
    layer, seen = build(name), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        decode(layer, before=3, steps=2)
    finally:
        hook.remove()
    maps = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    maps += [layer.o_norm] if name == "plain" else []
    assert len(maps) > 6 and {seen.count(module) for module in maps} == {3}
    assert "plan_conv_layer" not in taken and "plan_rwkv7_layer" not in taken


@cases(name=["plain", "rwkv7, first"], backend=["auto", "native"])
def test_a_step_is_told_once(taken, caplog, monkeypatch, name, backend):
    monkeypatch.setattr(choice, "_told", set())
    layer = build(name)
    set_backend(layer, backend)
    with caplog.at_level(logging.INFO, "myfla"):
        decode(layer)
    who = type(layer).__name__
    assert caplog.text.count(f"{who} step on cpu: computed by backend native (asked for: {backend})") == 1

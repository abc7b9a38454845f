"""The Mamba-2 layer against a float64 loop over its tokens, its arguments, and how its parameters begin.

What holds for every layer (masks, packing, splits, sessions) is in tests/myfla/test_state_properties_layers.py.
"""

import math

import pytest
import torch

import layer_truth
from family_layers import VARIANTS, D, build
from myfla.layers import Mamba2
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases

NAMES = [f"Mamba2_{variant}".rstrip("_") for variant in VARIANTS["Mamba2"]]


def draw(*shape, dtype=torch.float64, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@cases(name=NAMES, training=[True, False], tokens=[1, 23, 70])
def test_outputs_and_gradients_equal_the_loop(name, training, tokens):
    layer = build(name).train(training)
    x = draw(2, tokens, D).requires_grad_()
    parameters = layer_truth.parameters_of(layer)
    want = torch.stack([layer_truth.mamba2(layer, parameters, row)[0] for row in x])
    do = draw(*want.shape, seed=4)
    of_truth = torch.autograd.grad((want * do).sum(), [x, *parameters.values()])
    y = layer(x)[0]
    assert_close(y, want, rms=1e-11)
    own = torch.autograd.grad((y * do).sum(), [x, *dict(layer.named_parameters()).values()])
    for part, got, expected in zip(["x", *parameters], own, of_truth):
        assert_close(got, expected, rms=1e-10, name=part)


@cases(name=NAMES, first=[0, 1, 5, 66])
def test_a_cache_goes_on_where_the_loop_is(name, first):
    layer, cache = build(name), Cache()
    x, parameters = draw(2, first + 4, D), layer_truth.parameters_of(layer)
    with torch.no_grad():
        pieces = [x[:, :first], *x[:, first:].split(1, 1)]
        y = torch.cat([layer(part, past_key_values=cache, use_cache=True)[0] for part in pieces], 1)
    for n, row in enumerate(x):
        want, state, history = layer_truth.mamba2(layer, parameters, row)
        assert_close(y[n], want.detach(), rms=1e-11)
        assert_close(cache[0]["recurrent_state"][n], state.detach(), rms=1e-11)
        assert_close(cache[0]["conv_state"][n], history.detach(), rms=1e-11)
    assert cache.get_seq_length() == first + 4


@cases(dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_near_its_own_float64_run(dtype):
    layer = build("Mamba2", dtype)
    x, parameters = draw(2, 40, D, dtype=dtype), layer_truth.parameters_of(layer)
    want = torch.stack([layer_truth.mamba2(layer, parameters, row)[0] for row in x])
    y = layer(x)[0]
    assert y.dtype == dtype and layer.A_log.dtype == torch.float32
    assert_close(y, want, rms={torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}[dtype])


def test_parameters_have_the_official_names_shapes_and_start():
    torch.manual_seed(0)
    layer = Mamba2(hidden_size=64, head_dim=2, state_size=16, n_groups=4, A_init_range=(2, 5), dt_min=0.01, dt_max=0.2,
                   conv_init=0.03, use_bias=True)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "dt_bias": (64,), "A_log": (64,), "D": (64,), "conv1d.weight": (256, 1, 4), "conv1d.bias": (256,),
        "in_proj.weight": (448, 64), "in_proj.bias": (448,), "norm.weight": (128,), "out_proj.weight": (64, 128),
        "out_proj.bias": (64,)}
    dt = torch.nn.functional.softplus(layer.dt_bias)
    assert 0.0099 < dt.min() < 0.015 and 0.15 < dt.max() < 0.201
    assert 2 <= layer.A_log.exp().min() < 2.2 and 4.8 < layer.A_log.exp().max() <= 5.001
    assert bool((layer.D == 1).all()) and 0.029 < layer.conv1d.weight.abs().max() <= 0.03
    assert all(p._no_weight_decay for p in (layer.dt_bias, layer.A_log, layer.D))
    torch.manual_seed(1)
    again = Mamba2(hidden_size=64, head_dim=2, state_size=16, n_groups=4, A_init_range=(2, 5), dt_min=0.01, dt_max=0.2,
                   conv_init=0.03, use_bias=True)
    torch.manual_seed(1)
    layer.reset_parameters()
    for name, p in layer.named_parameters():
        assert torch.equal(p, dict(again.named_parameters())[name]), name


def test_a_layer_without_weights_takes_them_later():
    layer = Mamba2(hidden_size=D, head_dim=4, state_size=6, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert all(torch.isfinite(x).all() for x in (*layer.parameters(), layer(draw(1, 3, D).float())[0]))


def test_gates_are_those_of_the_rule():
    layer = build("Mamba2_plain")
    g, dt = layer.gates(draw(2, 9, D))
    assert g.shape == dt.shape == (2, 9, layer.num_heads)
    assert bool((dt >= 0.01).all()) and bool((dt <= 0.5).all())
    assert_close(g, -dt * layer.A_log.exp(), rms=1e-12)


@cases(change=[
    (dict(head_dim=5), r"head_dim.* must divide expand [*] hidden_size = 24"),
    (dict(num_heads=5), r"num_heads.* times head_dim=4 must be expand [*] hidden_size = 24.*use 6"),
    (dict(n_groups=4), r"n_groups.* must divide the number of heads, 6"),
    (dict(expand=1.3), r"expand.* times hidden_size=12 must be an integer"),
    (dict(hidden_act="tanh"), r"hidden_act.* must be one of"),
    (dict(dt_limit=(1, 0)), r"dt_limit.* must be two numbers, the smaller first"),
    (dict(A_init_range=(0, 1)), r"A_init_range.* must be two positive numbers"),
    (dict(dt_min=0.2), r"\(dt_min, dt_max\).* must be two positive numbers"),
    (dict(dt_init_floor=0), r"dt_init_floor.* must be a positive number"),
    (dict(conv_init=-1), r"conv_init.* must be a positive number"),
    (dict(state_size=0), r"state_size.* must be a positive integer"),
    (dict(rmsnorm=1), r"rmsnorm.* must be True or False"),
    (dict(chunk_size=0), r"chunk_size.* must be a positive integer"),
])
def test_an_argument_that_does_not_fit_is_named(change):
    with pytest.raises(ValueError, match="^Mamba2: " + change[1]):
        Mamba2(**{**dict(hidden_size=D, head_dim=4, state_size=6), **change[0]})


def test_an_unknown_keyword_names_the_nearest():
    with pytest.raises(TypeError, match=r"Mamba2.*'state_sise'.*state_size"):
        Mamba2(hidden_size=D, head_dim=4, state_sise=6)


def test_the_official_names_of_convolutions_are_accepted():
    assert Mamba2(hidden_size=D, head_dim=4, backend="triton").backend == "auto"
    assert Mamba2(hidden_size=D, head_dim=4, backend="torch", dt_limit=(0, math.inf)).backend == "torch"

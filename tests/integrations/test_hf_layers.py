"""Convolution and gated norm in transformers' calling convention: equal to transformers' functions."""

import inspect

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from myfla.integrations import hf_layers
from myfla.testing import assert_close, cases, raises

whole = inspect.unwrap(qwen.causal_conv1d_fn)
update = inspect.unwrap(qwen.causal_conv1d_update)
ACTIVATIONS = ["silu", "swish", None, "gelu", "tanh"]
B, D, W = 2, 6, 4


def gated_norm(**options):
    """A norm whose gate may be other than silu."""
    name = "transformers.models.qwen4_exp.modeling_qwen4_exp"
    return pytest.importorskip(name, reason="a later version has it").Qwen4ExpTextRMSNormGated(16, **options)


def leaves(T, bias, dtype=torch.float32):
    found = [torch.randn(B, D, T, dtype=dtype), torch.randn(D, W, dtype=dtype)]
    found = [*found, torch.randn(D, dtype=dtype)] if bias else found
    return [x.requires_grad_() for x in found]


def with_gradients(function, tensors, activation, **kwargs):
    x, weight, *bias = tensors
    y = function(x, weight, bias=bias[0] if bias else None, activation=activation, **kwargs)
    projection = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad((y * projection).sum(), tensors)]


@cases(T=[1, 3, 40], activation=ACTIVATIONS, bias=[False, True])
def test_the_convolution_and_its_gradients_equal_transformers(T, activation, bias):
    tensors = leaves(T, bias)
    for got, want in zip(with_gradients(hf_layers.causal_conv1d_fn, tensors, activation, labels=None),
                         with_gradients(whole, tensors, activation)):
        assert_close(got, want, rms=2e-6)


@cases(told=["cu_seqlens", "cu_seq_lens_q", "seq_idx"], activation=["silu", "gelu"], before=[0, 2, 5])
def test_no_window_reaches_into_another_sequence(told, activation, before):
    lengths = [5, 1, 2, 12]
    x, weight = torch.randn(1, D, sum(lengths) + before), torch.randn(D, W)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None].int()
    packed = {told: numbers if told == "seq_idx" else offsets}
    got = hf_layers.causal_conv1d_fn(x, weight, None, activation=activation, **packed)
    # What the cache put before the row is the past of its first sequence.
    pieces = x.split([before + lengths[0], *lengths[1:]], 2)
    assert_close(got, torch.cat([whole(piece, weight, None, activation) for piece in pieces], 2), rms=2e-6)


def test_every_row_of_a_batch_has_its_own_sequences():
    x, weight = torch.randn(B, D, 7), torch.randn(D, W)
    numbers = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 2]])
    got = hf_layers.causal_conv1d_fn(x, weight, seq_idx=numbers)
    for row, cuts in enumerate(([4, 3], [1, 5, 1])):
        want = torch.cat([whole(piece, weight) for piece in x[row : row + 1].split(cuts, 2)], 2)
        assert_close(got[row : row + 1], want, rms=2e-6)


@cases(T=[1, 2, 6], length=[3, 4, 5, 7], activation=ACTIVATIONS, bias=[False, True])
def test_new_tokens_and_the_state_left_behind_equal_transformers(T, length, activation, bias):
    x, weight, *rest = (tensor.detach() for tensor in leaves(T, bias))
    state = torch.randn(B, D, length)
    mine, theirs = state.clone(), state.clone()
    arguments = (weight, rest[0] if rest else None, activation)
    assert_close(hf_layers.causal_conv1d_update(x, mine, *arguments), update(x, theirs, *arguments), rms=2e-6)
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, state)


def test_one_token_may_come_without_a_time_axis():
    x, weight, state = torch.randn(B, D), torch.randn(D, W), torch.randn(B, D, W)
    mine, theirs = state.clone(), state.clone()
    got = hf_layers.causal_conv1d_update(x, mine, weight, None, "silu")
    assert_close(got, update(x[:, :, None], theirs, weight, None, "silu")[:, :, 0], rms=2e-6)
    assert torch.equal(mine, theirs)


@cases(T=[1, 3])
def test_gradients_flow_through_a_state_that_is_written_later(T):
    x, weight = (tensor for tensor in leaves(T, False))
    results = []
    for function in (hf_layers.causal_conv1d_update, update):
        state = torch.ones(B, D, W)
        y = function(x, state, weight, None, "silu")
        state.zero_()
        results.append(torch.autograd.grad(y.square().sum(), [x, weight]))
    for got, want in zip(*results):
        assert_close(got, want, rms=2e-6)


@cases(name=["initial_states", "return_final_states"])
def test_official_options_that_are_not_here_are_refused(name):
    with raises(ValueError, f"causal_conv1d_fn: {name} is not available here", "leave it out"):
        hf_layers.causal_conv1d_fn(torch.zeros(1, D, 3), torch.zeros(D, W), **{name: torch.zeros(1)})


@cases(name=["cache_seqlens", "conv_state_indices"])
def test_official_options_of_the_update_that_are_not_here_are_refused(name):
    state = torch.zeros(1, D, W)
    with raises(ValueError, f"causal_conv1d_update: {name} is not available here"):
        hf_layers.causal_conv1d_update(torch.zeros(1, D, 1), state, torch.zeros(D, W), **{name: torch.zeros(1)})


@cases(activation=["silu", "swish", "sigmoid", "gelu"], shape=[(7, 16), (2, 3, 5, 16)])
def test_the_gated_norm_and_its_gradients_equal_transformers(activation, shape):
    layer = gated_norm(eps=1e-3, activation=activation)
    torch.nn.init.normal_(layer.weight)
    x, gate = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    results = []
    for forward in (hf_layers.rms_norm_gated, type(layer).forward):
        y = forward(layer, x, gate)
        results.append([y.detach(), *torch.autograd.grad(y.pow(3).sum(), [x, gate, layer.weight])])
    for got, want in zip(*results):
        assert_close(got, want, rms=2e-6)


@cases(activation=["silu", "gelu"])
def test_the_gated_norm_keeps_half_precision(activation):
    layer = gated_norm(activation=activation).bfloat16()
    x, gate = torch.randn(9, 16).bfloat16(), torch.randn(9, 16).bfloat16()
    got = hf_layers.rms_norm_gated(layer, x, gate)
    assert got.dtype == torch.bfloat16
    assert_close(got, layer(x, gate), rms=1e-2)

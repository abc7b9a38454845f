"""Qwen3-Next's layer in training: equal to transformers' own pass, and unchanged where the version is unknown."""

import copy
import inspect
import logging

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers import DynamicCache
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from hf_small_models import build, in_float64, plain_transformers, tokens
from myfla.integrations import hf_grouped
from myfla.integrations.hf_models import unknown_layers
from myfla.integrations.packing import packed_kwargs
from myfla.integrations.transformers import use_myfla
from myfla.modules import blocks
from myfla.testing import assert_close, cases

if not hf_grouped.is_known(qwen.Qwen3NextGatedDeltaNet):
    pytest.skip("this transformers' layer is another", allow_module_level=True)

FAMILY = "qwen3_next"


def layer(dtype=torch.float64):
    return build(FAMILY).model.layers[1].linear_attn.to(dtype).train()


def results(module, x, **kwargs):
    x = x.detach().requires_grad_()
    y = module(x, **kwargs)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])]


@pytest.fixture
def calls(monkeypatch):
    """How often the whole layer is computed here."""
    seen, apply = [], hf_grouped.GroupedConvolution.apply
    monkeypatch.setattr(hf_grouped.GroupedConvolution, "apply", lambda *given: seen.append(1) or apply(*given))
    return seen


@cases(T=[1, 2, 5, 40], block=[None, 7 * 80, 1])
def test_every_gradient_equals_transformers_in_float64(T, block, monkeypatch, calls):
    if block:
        monkeypatch.setattr(blocks, "CPU_BLOCK", block)
    module, x = layer(), torch.randn(3, T, 32, dtype=torch.float64)
    with plain_transformers(FAMILY), in_float64(FAMILY):
        want = results(module, x)
    with use_myfla(), in_float64(FAMILY):
        got = results(module, x)
    assert len(calls) == 1
    for one, other in zip(got, want):
        assert_close(one, other, rms=1e-12)


def test_a_gpu_computes_the_same(calls):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    module, x = layer().cuda(), torch.randn(3, 40, 32, dtype=torch.float64, device="cuda")
    with plain_transformers(FAMILY), in_float64(FAMILY):
        want = results(module, x)
    with use_myfla(devices=["cuda"]), in_float64(FAMILY):
        got = results(module, x)
    assert len(calls) == 1
    for one, other in zip(got, want):
        assert_close(one, other, rms=1e-12)


def test_a_mask_is_applied_as_transformers_does(calls):
    module, x = layer(), torch.randn(2, 9, 32, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    with plain_transformers(FAMILY), in_float64(FAMILY):
        want = results(module, x, attention_mask=mask)
    with use_myfla(), in_float64(FAMILY):
        got = results(module, x, attention_mask=mask)
    assert len(calls) == 1
    for one, other in zip(got, want):
        assert_close(one, other, rms=1e-12)


def test_second_derivatives_equal_those_of_plain_operations():
    mixed = torch.randn(1, 5, 2, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2 * (2 + 2 + 4), 3, dtype=torch.float64, requires_grad=True)

    def run(mixed, weight):
        return sum(part.pow(2).sum() for part in hf_grouped.GroupedConvolution.apply(mixed, weight, 2))

    assert torch.autograd.gradcheck(run, (mixed, weight))
    assert torch.autograd.gradgradcheck(run, (mixed, weight))


def test_everything_but_a_plain_training_step_is_left_to_transformers(calls):
    model, ids = build(FAMILY), tokens(1, 12)
    with use_myfla():
        with torch.no_grad():
            model(ids)
        model(ids, use_cache=True)
        model(ids, **packed_kwargs(torch.cat([torch.arange(5), torch.arange(7)])[None]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(ids, use_cache=False)
        copy.deepcopy(model).bfloat16()(ids, use_cache=False)
        assert not calls
        model(ids, use_cache=False)
        assert len(calls) == 3


@cases(how=["position", "cache_params", "cache"])
def test_the_cache_is_seen_by_whatever_name_or_place_it_comes(how, calls):
    module, x, left = layer(), torch.randn(2, 9, 32, dtype=torch.float64), []
    if how == "cache" and how not in inspect.signature(qwen.Qwen3NextGatedDeltaNet.forward).parameters:
        pytest.skip("a name that came with transformers 5.24")
    for patched in (False, True):
        states = DynamicCache(config=build(FAMILY).config)
        place, named = ([states], {}) if how == "position" else ([], {how: states})
        with (use_myfla() if patched else plain_transformers(FAMILY)), in_float64(FAMILY):
            module(x, *place, **named)
        left.append(states.layers[module.layer_idx].recurrent_states[0])
    assert not calls
    assert_close(*left, rms=1e-12)


@cases(how=["cpu_offload", "disk_offload"])
def test_a_layer_whose_weights_accelerate_brings_is_left_to_transformers(how, tmp_path, calls):
    accelerate = pytest.importorskip("accelerate")
    model, ids = build(FAMILY).double().train(), tokens(2, 9)
    with use_myfla(), in_float64(FAMILY):
        want = model(ids, use_cache=False).logits
        assert len(calls) == 3
        where = {"offload_dir": str(tmp_path)} if how == "disk_offload" else {}
        getattr(accelerate, how)(model, execution_device=torch.device("cpu"), **where)
        assert model.model.layers[1].linear_attn.conv1d.weight.is_meta
        got = model(ids, use_cache=False).logits
    assert len(calls) == 3
    assert_close(got.detach(), want.detach(), rms=1e-12)


def test_a_layer_of_an_unknown_version_keeps_its_forward_and_the_log_says_so(monkeypatch, caplog, calls):
    model, ids = build(FAMILY), tokens(1, 12)
    with use_myfla(families=[FAMILY]):
        assert unknown_layers(qwen) == []
        want = model(ids, use_cache=False).logits
    assert len(calls) == 3
    monkeypatch.setattr(hf_grouped, "KNOWN", frozenset())
    with caplog.at_level(logging.INFO, "myfla"), use_myfla(families=[FAMILY]) as patch:
        assert not any(name.endswith("GatedDeltaNet.forward") for name in patch.changed)
        assert_close(model(ids, use_cache=False).logits, want, rms=1e-6)
    assert len(calls) == 3
    assert "modeling_qwen3_next.Qwen3NextGatedDeltaNet is of a version not known here" in caplog.messages[0]


def test_a_change_in_the_code_is_noticed():
    class Qwen3NextGatedDeltaNet(qwen.Qwen3NextGatedDeltaNet):
        def forward(self, hidden_states):
            return hidden_states

        def fix_query_key_value_ordering(self, mixed_qkvz, mixed_ba):
            return mixed_qkvz

    assert hf_grouped.sorts_by_kind(Qwen3NextGatedDeltaNet) and not hf_grouped.is_known(Qwen3NextGatedDeltaNet)

"""Everything runs on the device meta, which has shapes and no values: as a large model is planned before it is made."""

import pytest
import torch
import torch.nn as nn

import gdn_layer
import rwkv7_layers
from fuzz_subjects import SUBJECTS
from myfla.layers import Attention
from myfla.models.utils import Cache
from myfla.testing import cases, raises
from small_encoders import NAMES, small
from small_models import KINDS, prompt, small_config, small_model

META = torch.device("meta")
CONTINUED = {name for name in SUBJECTS if name.endswith("_continued")}  # these begin on the CPU; see below
# What these give has a size that depends on values.
COUNT = {
    "get_unpad_data", "unpad_input", "prepare_position_ids", "prepare_sequence_ids", "prepare_token_indices",
    "prepare_chunk_indices", "get_max_num_splits", "prepare_split_cu_seqlens", "Cache.select", "Cache.reorder",
}  # fmt: skip


def moved(x):
    if isinstance(x, (tuple, list)):
        return type(x)(moved(part) for part in x)
    return x.to(META) if isinstance(x, torch.Tensor) else x


def tensors(x):
    """All tensors in a result, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def assert_alike(got, want):
    assert [(x.shape, x.dtype, x.device.type) for x in tensors(got)] == [
        (x.shape, x.dtype, "meta") for x in tensors(want)]


@pytest.fixture
def modules_on_meta(monkeypatch):
    to = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda module, *args, **kwargs: to(to(module, *args, **kwargs), META))
DATA = {"encode", "encode_steps"}  # these read raw data


@cases(name=sorted(SUBJECTS.keys() - CONTINUED), gradients=[False, True])
def test_shapes_and_formats_are_those_of_the_cpu(name, gradients, request):
    subject = SUBJECTS[name]

    def make():
        return _model_call(name) if name.startswith("model") else subject.make(torch.float32)

    with torch.set_grad_enabled(gradients):
        want = subject.make(torch.float32)(**subject.arguments())
        request.getfixturevalue("modules_on_meta")
        call, given = make(), {field: moved(x) for field, x in subject.arguments().items()}
        if name in COUNT or name in DATA:
            with raises(ValueError, "values" if name in COUNT else "must hold data; got a tensor on the device meta"):
                call(**given)
        else:
            assert_alike(call(**given), want)


def _model_call(name):
    kind = "gated_deltanet" if name == "model_gdn" else "rwkv7"
    model = type(small_model(kind))(small_config(kind), device=META).eval()
    return lambda input_ids, attention_mask, labels: model(
        input_ids, attention_mask=attention_mask, labels=labels, use_cache=False).to_tuple()[:2]


LAYERS = {
    "gdn": lambda: gdn_layer.build(torch.float32, num_v_heads=4, conv_bias=True),
    "gdn_plain": lambda: gdn_layer.build(torch.float32, use_short_conv=False, use_gate=False),
    "rwkv7": lambda: rwkv7_layers.build(0, dtype=torch.float32),
    "attention": lambda: Attention(hidden_size=16, num_heads=2, layer_idx=0, window_size=3),
}


@cases(name=list(LAYERS), tokens=[0, 1, 70])
def test_a_layer_goes_on_from_a_cache(name, tokens):
    for pads in (False, True):
        for gradients in (False, True):
            check_layer(name, pads, gradients, tokens)


def check_layer(name, pads, gradients, tokens):
    layer, seen = LAYERS[name](), []
    width = layer.hidden_size
    for device in ("cpu", "meta"):
        layer.to(device)
        cache = Cache()
        with torch.set_grad_enabled(gradients):
            layer(torch.zeros(2, 3, width, device=device), past_key_values=cache, use_cache=True)
            mask = torch.ones(2, 3 + tokens, dtype=torch.long, device=device)
            if pads and tokens and device == "cpu":
                mask[0, 3] = 0
            y = layer(torch.zeros(2, tokens, width, device=device), past_key_values=cache, use_cache=True,
                      attention_mask=mask if pads else None)[0]
        seen.append([y, *[dict(state) for state in cache]])
    assert_alike(seen[1], seen[0])


STACKS = [("causal", "last"), ("causal", "mean"), ("bidirectional", "max"), ("bidirectional", "attention")]


@cases(name=NAMES, stack=STACKS)
def test_encoders_give_the_shapes_of_the_cpu(name, stack):
    direction, pooling = stack
    for how in ("dense", "lengths", "attention_mask", "cu_seqlens"):
        check_encoder(name, direction, pooling, how)


def check_encoder(name, direction, pooling, how):
    x = torch.zeros(1 if how == "cu_seqlens" else 2, 6, 3)
    layouts = {
        "dense": {}, "lengths": {"lengths": torch.tensor([6, 4])},
        "cu_seqlens": {"cu_seqlens": torch.tensor([0, 2, 6])}, "attention_mask": {"attention_mask": torch.ones(2, 6)},
    }  # fmt: skip
    encoder = small(name, torch.float32, direction=direction, pooling=pooling)
    with torch.no_grad():
        want = encoder(x, **layouts[how])
        encoder.to(META)
        here = encoder(x.to(META), **layouts[how])  # the layout has values, the data none
        got = encoder(x.to(META), **{field: value.to(META) for field, value in layouts[how].items()})
    assert_alike(list(got[:2]), list(want[:2]))
    assert_alike(list(here[:2]), list(want[:2]))


@cases(stem=["patch", "conv", "inception"])
def test_a_stem_shortens_a_batch_and_says_that_packed_data_needs_values(stem):
    encoder = small("gated_deltanet", torch.float32, stem=stem, stem_stride=2, direction="bidirectional")
    want = encoder(torch.zeros(2, 6, 3))
    encoder.to(META)
    assert_alike(list(encoder(torch.zeros(2, 6, 3, device=META))[:2]), list(want[:2]))
    with raises(ValueError, "encoder: cu_seqlens must have values", "device meta", "give a batch"):
        encoder(torch.zeros(1, 6, 3, device=META), cu_seqlens=torch.tensor([0, 2, 6]))


@cases(kind=KINDS, cached=[False, True])
def test_models_give_logits_loss_and_a_cache(kind, cached):
    ids, seen = prompt(2, 9), []
    for device in ("cpu", "meta"):
        model = type(small_model(kind))(small_config(kind), device=device).eval()
        first = model(ids[:, :4].to(device), use_cache=cached)
        out = model(ids[:, 4:].to(device), labels=ids[:, 4:].to(device), past_key_values=first.past_key_values)
        seen.append([out.loss, out.logits, *map(dict, out.past_key_values or ())])
    assert_alike(seen[1], seen[0])


def test_values_are_asked_for_where_the_data_has_some():
    layer, x = LAYERS["gdn"](), torch.zeros(2, 5, gdn_layer.D)
    with raises(ValueError, "GatedDeltaNet: attention_mask must have values", "device meta"):
        layer(x, attention_mask=torch.ones(2, 5, device=META))

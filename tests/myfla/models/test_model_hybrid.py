"""Models some of whose blocks are softmax attention: the official keys, caches, generation, files."""

import json

import torch
from safetensors.torch import load_file

from attention_truth import attention_truth
from cfg.encoder import GatedDeltaNetEncoderConfig
from cfg.validation import ConfigError
from encoders import build_encoder, load_encoder
from encoders.probing import probe
from myfla.layers import Attention, GatedDeltaNet
from myfla.models import Cache, GatedDeltaNetConfig, load_model
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CheckpointError
from small_models import prompt, small_model

D = torch.float64
ATTN = dict(layers=[1], num_heads=4, num_kv_heads=2)
KINDS = {
    "one": ATTN,
    "window and biases": dict(ATTN, window_size=4, qkv_bias=True, rope_theta=300.0),
    "two groups": [dict(layers=[0], num_heads=2), dict(layers=[2], num_heads=4, window_size=6)],
}


def hybrid(kind="one", dtype=D, **more):
    return small_model("gated_deltanet", dtype=dtype, num_hidden_layers=3, attn=KINDS[kind], **more)


def test_the_config_fills_in_the_official_defaults_and_keeps_what_it_does_not_know():
    given = {"layers": (1,), "num_heads": 4, "note": "kept"}
    config = GatedDeltaNetConfig(num_hidden_layers=2, attn=given)
    assert config.attn == dict(layers=[1], num_heads=4, num_kv_heads=4, qkv_bias=False, window_size=None,
                               rope_theta=10000.0, note="kept")
    assert "qkv_bias" not in given
    assert [type(block.attn) for block in hybrid("two groups").model.layers] == [Attention, GatedDeltaNet, Attention]


@cases(qkv_bias=[False, True])
def test_a_block_of_attention_has_the_official_keys(qkv_bias):
    model = small_model("gated_deltanet", num_hidden_layers=2, attn=dict(ATTN, qkv_bias=qkv_bias))
    prefix = "model.layers.1.attn."
    found = {name[len(prefix) :]: list(x.shape) for name, x in model.state_dict().items() if name.startswith(prefix)}
    want = {"q_proj.weight": [32, 32], "k_proj.weight": [16, 32], "v_proj.weight": [16, 32], "o_proj.weight": [32, 32]}
    assert found == {**want, **({"q_proj.bias": [32], "k_proj.bias": [16], "v_proj.bias": [16]} if qkv_bias else {})}


@cases(kind=["one", "window and biases"])
def test_the_block_computes_attention_between_its_norms(kind):
    model, ids = hybrid(kind), prompt(1, 11)
    seen = {}
    block = model.model.layers[1]
    block.attn_norm.register_forward_hook(lambda module, given, out: seen.update(normed=out))
    block.attn.register_forward_hook(lambda module, given, out: seen.update(mixed=out[0]))
    model(ids)
    assert_close(seen["mixed"][0], attention_truth(block.attn, seen["normed"][0]), rms=1e-12)


@cases(kind=sorted(KINDS))
def test_pieces_pads_and_packing_change_nothing(kind):
    model, ids = hybrid(kind), prompt(2, 16)
    mask = torch.ones_like(ids)
    mask[0, :6], mask[1, [3, 15]] = 0, 0
    with torch.no_grad():
        rows = [model(ids[n : n + 1, mask[n].bool()]).logits for n in range(2)]
        whole = model(ids, attention_mask=mask).logits
        cache, pieces = None, []
        for start, end in ((0, 5), (5, 6), (6, 16)):
            out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache, pieces = out.past_key_values, [*pieces, out.logits]
        packed = torch.cat([ids[n, mask[n].bool()] for n in range(2)])[None]
        together = model(packed, cu_seqlens=torch.tensor([0, 10, 24])).logits
    for n in range(2):
        assert_close(whole[n : n + 1, mask[n].bool()], rows[n], rms=1e-12)
        assert_close(torch.cat(pieces, 1)[n : n + 1, mask[n].bool()], rows[n], rms=1e-12)
    assert_close(together, torch.cat(rows, 1), rms=1e-12)


@cases(kind=sorted(KINDS))
def test_generation_goes_on_from_left_pads_with_and_without_a_cache(kind):
    model, ids = hybrid(kind), prompt(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = dict(max_new_tokens=12, eos_token_id=None)
    got = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(got, model.generate(ids, attention_mask=mask, use_cache=False, **options))
    assert torch.equal(got[:1, 4:], model.generate(ids[:1, 4:], **options))
    assert torch.equal(got[1:], model.generate(ids[1:], **options))


def test_a_cache_goes_through_a_file_and_back(tmp_path):
    model, ids = hybrid("window and biases"), prompt(2, 9)
    with torch.no_grad():
        cache = model(ids[:, :7], use_cache=True).past_key_values
        cache.save(tmp_path / "state.safetensors")
        again = Cache.load(tmp_path / "state.safetensors")
        want = model(ids[:, 7:], past_key_values=cache).logits
        assert torch.equal(model(ids[:, 7:], past_key_values=again).logits, want)


@cases(kind=sorted(KINDS))
def test_a_folder_that_was_saved_is_the_same_model(kind, tmp_path):
    model = hybrid(kind, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.config.attn == model.config.attn == json.loads((tmp_path / "config.json").read_text())["attn"]
    assert set(load_file(str(tmp_path / "model.safetensors"))) == set(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(prompt()).logits, model(prompt()).logits)


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    model, ids = hybrid("window and biases"), prompt()
    model.train()
    results = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(gradient.any() for gradient in results[0].values())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@cases(kind=["one", "window and biases"])
def test_a_hybrid_checkpoint_is_the_backbone_of_an_encoder(kind, tmp_path):
    model = hybrid(kind)
    model.save_pretrained(tmp_path / "official")
    config = GatedDeltaNetEncoderConfig(pretrained=str(tmp_path / "official"), direction="causal")
    encoder, ids = build_encoder(config, dtype=D).eval(), prompt(2, 12)
    lengths = torch.tensor([12, 5])
    with torch.no_grad():
        assert_close(encoder(ids).hidden, model.model(ids).last_hidden_state, rms=1e-12)
        assert_close(encoder(ids, lengths=lengths).hidden[1, :5], encoder(ids[1:, :5]).hidden[0], rms=1e-12)
        first = encoder(ids[:, :5], use_cache=True)
        pieces = [first.hidden, encoder(ids[:, 5:], cache=first.cache).hidden]
        assert_close(torch.cat(pieces, 1), encoder(ids).hidden, rms=1e-12)
        assert [found.layer for found in probe(encoder, ids)] == [0, 2]
        encoder.save(tmp_path / "mine")
        again = load_encoder(tmp_path / "mine")
        assert again.config == encoder.config and torch.equal(again(ids).hidden, encoder(ids).hidden)


def test_states_of_encoders_from_before_there_was_attention_still_fit():
    assert build_encoder(GatedDeltaNetEncoderConfig(input_size=3)).fingerprint == "3c6692573dbb0a89"


def test_an_encoder_cannot_hold_two_groups(tmp_path):
    hybrid("two groups").save_pretrained(tmp_path)
    with raises(CheckpointError, "config.json", "attn must be null or one group of layers", "load_backbone"):
        build_encoder(GatedDeltaNetEncoderConfig(pretrained=str(tmp_path), direction="causal"))


WRONG = [
    (3, ["attn must be null, a dict or a list of dicts", "3"]),
    ([3], ["attn must hold dicts", "3"]),
    (dict(num_heads=4), ["attn.layers must be given"]),
    (dict(layers=[0]), ["attn.num_heads must be given"]),
    (dict(layers=[2], num_heads=4), ["attn.layers must be numbers of layers from 0 to 1", "[2]"]),
    (dict(layers=0.5, num_heads=4), ["attn.layers must be numbers of layers", "0.5"]),
    (dict(layers=[1, 1], num_heads=4), ["attn.layers must name a layer once", "1"]),
    ([dict(layers=[1], num_heads=4), dict(layers=[1], num_heads=2)], ["attn.layers must name a layer once"]),
    (dict(ATTN, num_heads=None), ["attn.num_heads must be a positive integer", "None"]),
    (dict(ATTN, num_kv_heads=0), ["attn.num_kv_heads must be a positive integer", "0"]),
    (dict(ATTN, window_size="4"), ["attn.window_size must be a positive integer", "'4'"]),
    (dict(ATTN, qkv_bias=1), ["attn.qkv_bias must be true or false", "1"]),
    (dict(ATTN, rope_theta=-1), ["attn.rope_theta must be positive and finite", "-1"]),
]


@cases(case=WRONG)
def test_wrong_settings_of_a_model_are_refused(case):
    with raises(ValueError, "GatedDeltaNetConfig", *case[1]):
        GatedDeltaNetConfig(num_hidden_layers=2, attn=case[0])


WRONG_ENCODERS = [
    ([1], ["encoder.attn must be null or hold layers and num_heads"]),
    (dict(layers=[0], num_head=4), ["encoder.attn.num_head must be a setting", "did you mean 'num_heads'?"]),
    (dict(num_heads=4), ["encoder.attn.layers must be given"]),
    (dict(layers=[2], num_heads=4), ["encoder.attn.layers must be different numbers from 0 to 1", "[2]"]),
    (dict(layers=[1, 1], num_heads=4), ["encoder.attn.layers must be different numbers"]),
    (dict(layers=[1], num_heads=5), ["encoder.attn.num_heads must make heads of an even size", "hidden_size=64", "5"]),
    (dict(layers=[1], num_heads=4, num_kv_heads=3), ["num_kv_heads must divide encoder.attn.num_heads=4", "3"]),
    (dict(layers=[1], num_heads=4, qkv_bias=0), ["encoder.attn.qkv_bias must be true or false"]),
    (dict(layers=[1], num_heads=4, window_size=0), ["encoder.attn.window_size must be an integer from 1"]),
    (dict(layers=[1], num_heads=4, rope_theta=0), ["encoder.attn.rope_theta must be a finite number above 0"]),
]


@cases(case=WRONG_ENCODERS)
def test_wrong_settings_of_an_encoder_are_refused(case):
    with raises(ConfigError, *case[1]):
        GatedDeltaNetEncoderConfig(input_size=3, num_layers=2, hidden_size=64, attn=case[0])

"""``encoder.pretrained``: an official checkpoint becomes the encoder's backbone, and an encoder as any other."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfg.encoder import ENCODER_CONFIGS, GatedDeltaNetEncoderConfig, GRUEncoderConfig, RWKV7EncoderConfig
from cfg.validation import ConfigError
from encoders import build_encoder, load_encoder, with_checkpoint_sizes
from myfla.models import load_model
from myfla.models.checkpoint_names import MIXES
from myfla.testing import assert_close, cases
from myfla.utils.errors import CheckpointError
from small_models import KINDS, VOCABULARY, prompt, small_model

D = torch.float64
CONFIGS = {kind: ENCODER_CONFIGS[kind] for kind in KINDS}


def checkpoint(kind, folder, **overrides):
    small_model(kind, **overrides).save_pretrained(folder, **({"max_shard_size": "20KB"} if kind == "rwkv7" else {}))
    return folder


def backbone(kind, folder, **fields):
    return build_encoder(CONFIGS[kind](pretrained=str(folder), **fields), dtype=D).eval()


@cases(kind=KINDS)
def test_hidden_states_are_the_official_models(kind, tmp_path):
    encoder = backbone(kind, checkpoint(kind, tmp_path))
    model, ids = load_model(tmp_path, dtype=D).model, prompt(3, 20)
    with torch.no_grad():
        assert_close(encoder(ids).hidden, model(ids).last_hidden_state, rms=1e-12)
        lengths = torch.tensor([20, 7, 13])
        mask = (torch.arange(20) < lengths[:, None]).long()
        want = model(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        assert_close(encoder(ids, lengths=lengths).hidden, want, rms=1e-12)
        assert_close(encoder(ids, attention_mask=mask).embedding, want.sum(1) / lengths[:, None], rms=1e-12)
        packed = torch.cat([row[:n] for row, n in zip(ids, lengths.tolist())])[None]
        cu = torch.tensor([0, 20, 27, 40])
        assert_close(encoder(packed, cu_seqlens=cu).hidden[0], want[mask.bool()], rms=1e-12)


@cases(kind=KINDS)
def test_a_stream_is_the_whole_sequence(kind, tmp_path):
    encoder, ids = backbone(kind, checkpoint(kind, tmp_path)), prompt(2, 30)
    with torch.no_grad():
        first = encoder(ids[:, :11], use_cache=True)
        second = encoder(ids[:, 11:12], cache=first.cache)
        third = encoder(ids[:, 12:], cache=second.cache)
        pieces = torch.cat([first.hidden, second.hidden, third.hidden], 1)
        assert_close(pieces, encoder(ids).hidden, rms=1e-12)


@cases(kind=KINDS)
def test_real_valued_input_meets_the_checkpoints_blocks(kind, tmp_path):
    encoder = backbone(kind, checkpoint(kind, tmp_path), input_size=5)
    x = torch.randn(2, 9, 5, dtype=D)
    model = load_model(tmp_path, dtype=D).model
    with torch.no_grad():
        assert_close(encoder(x).hidden, model(inputs_embeds=encoder.input(x)).last_hidden_state, rms=1e-12)
    assert encoder.config.vocab_size is None and encoder.input.weight.shape == (32, 5)


@cases(kind=KINDS)
def test_it_trains_saves_and_loads_as_every_encoder(kind, tmp_path):
    folder = checkpoint(kind, tmp_path / "official")
    encoder = backbone(kind, folder, pooling="attention", dropout=0.1).train()
    encoder(prompt()).embedding.square().sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "pooling.query" not in name)
    config = encoder.config
    assert (config.pretrained, config.hidden_size, config.num_layers, config.vocab_size) == (None, 32, 2, VOCABULARY)
    encoder.save(tmp_path / "mine")
    for file in folder.iterdir():
        file.unlink()  # an encoder's own files are all that it needs
    again = load_encoder(tmp_path / "mine")
    assert again.config == config and again.fingerprint == encoder.fingerprint
    with torch.no_grad():
        assert torch.equal(again(prompt()).hidden, encoder.eval()(prompt()).hidden)


def test_the_sizes_can_be_known_before_anything_is_built(tmp_path):
    config = RWKV7EncoderConfig(pretrained=str(checkpoint("rwkv7", tmp_path)), input_size=5)
    sized = with_checkpoint_sizes(config)
    assert (sized.hidden_size, sized.num_layers, sized.head_dim, sized.pretrained) == (32, 2, 16, str(tmp_path))
    assert build_encoder(sized).config == build_encoder(config).config


def test_an_old_layout_of_rwkv7_is_read(tmp_path):
    small_model("rwkv7").save_pretrained(tmp_path)
    want = backbone("rwkv7", tmp_path)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    for i in range(2):
        stacked = [tensors.pop(f"model.layers.{i}.attn.{mix}") for mix in MIXES]
        tensors[f"model.layers.{i}.attn.x_x"] = torch.stack([x.flatten() for x in stacked])
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(backbone("rwkv7", tmp_path)(prompt()).hidden, want(prompt()).hidden)


def test_half_precision_checkpoints_fill_encoders_of_any_dtype(tmp_path):
    small_model("gated_deltanet").to(torch.bfloat16).save_pretrained(tmp_path)
    encoder = build_encoder(GatedDeltaNetEncoderConfig(pretrained=str(tmp_path)))
    assert encoder.input.weight.dtype == torch.float32
    assert torch.equal(encoder.input.weight.bfloat16(), load_model(tmp_path).model.embeddings.weight)


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder, change):
    tensors = load_file(str(folder / "model.safetensors"))
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "must be a readable file"]),
    "another architecture": (lambda f: edit_config(f, model_type="llama"), ["model_type", "must be one of", "'llama'"]),
    "softmax attention": (
        lambda f: edit_config(f, attn={"layers": [0]}), ["config.json", "attn.num_heads must be given"]),
    "attention residuals": (
        lambda f: edit_config(f, attnres_block_size=2), ["attnres_block_size must be null", "load_backbone"]),
    "another activation": (lambda f: edit_config(f, hidden_act="powlu"), ["hidden_act must be 'swish'", "'powlu'"]),
    "missing": (lambda f: edit_weights(f, lambda t: t.pop("model.layers.1.attn.A_log")),
                ["missing: layers.1.attn.A_log", "backbone of encoder 'gated_deltanet'"]),
    "extra": (lambda f: edit_weights(f, lambda t: t.update({"model.layers.1.attn.more": torch.ones(1)})),
              ["extra: layers.1.attn.more"]),
    "another shape": (lambda f: edit_weights(f, lambda t: t.update({"model.norm.weight": torch.ones(3)})),
                      ["model.norm.weight", "must have shape [32]", "[3]"]),
    "integers": (lambda f: edit_weights(f, lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
                 ["model.norm.weight", "must be floating point", "quantised"]),
    "cut short": (cut, ["model.safetensors", "must be safetensors", "cut short"]),
    "pickled": (pickled, ["pytorch_model.bin", "pickled files can run code"]),
}  # fmt: skip


@cases(damage=list(DAMAGE))
def test_a_bad_checkpoint_is_refused_with_file_key_and_remedy(damage, tmp_path):
    checkpoint("gated_deltanet", tmp_path)
    change, texts = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        backbone("gated_deltanet", tmp_path)
    for text in ("encoder.pretrained: ", str(tmp_path), *texts):
        assert text in str(caught.value)


@cases(field=["norm_first", "norm_bias", "hidden_act", "value_dim"])
def test_rwkv7_that_our_blocks_cannot_hold_is_refused_by_name(field, tmp_path):
    checkpoint("rwkv7", tmp_path)
    values = {"norm_first": False, "norm_bias": False, "hidden_act": "relu", "value_dim": [32, 64]}
    edit_config(tmp_path, **{field: values[field]})
    with pytest.raises(CheckpointError, match=rf"encoder\.pretrained: .*config\.json: {field} must be .*load_backbone"):
        backbone("rwkv7", tmp_path)


CONFLICTS = {
    "hidden_size": (dict(hidden_size=128), r"encoder\.hidden_size must be 32, as .*config\.json says, .*; got 128"),
    "num_layers": (dict(num_layers=3), r"encoder\.num_layers must be 2"),
    "use_gate": (dict(use_gate=False), r"encoder\.use_gate must be True"),
    "vocab_size": (dict(vocab_size=100), r"encoder\.vocab_size must be at most 61.*another tokenizer"),
    "direction": (dict(direction="bidirectional"), r"encoder\.direction must be causal with encoder\.pretrained"),
}


@cases(field=list(CONFLICTS))
def test_a_setting_that_contradicts_the_checkpoint_is_refused(field, tmp_path):
    fields, match = CONFLICTS[field]
    with pytest.raises(ConfigError, match=match):
        backbone("gated_deltanet", checkpoint("gated_deltanet", tmp_path), **fields)


def test_another_strategy_is_refused_with_the_right_one(tmp_path):
    checkpoint("rwkv7", tmp_path)
    with pytest.raises(ConfigError, match=r"encoder\.pretrained must be .* 'gated_deltanet'.*use encoder=rwkv7"):
        backbone("gated_deltanet", tmp_path)
    with pytest.raises(ConfigError, match=r"encoder\.pretrained must be null for encoder 'gru'"):
        build_encoder(GRUEncoderConfig(pretrained=str(tmp_path), vocab_size=3))
    with pytest.raises(CheckpointError, match=r"encoder\.pretrained: .*must be an existing folder.*download"):
        backbone("gated_deltanet", tmp_path / "nowhere")


@cases(kind=KINDS)
def test_a_backend_is_the_machines_and_no_part_of_the_encoder(kind, tmp_path):
    naive, auto = (build_encoder(CONFIGS[kind](input_size=3, backend=name)) for name in ("naive", "auto"))
    assert {block.mixer.backend for block in naive.blocks} == {"naive"} and naive.fingerprint == auto.fingerprint
    naive.save(tmp_path)
    assert load_encoder(tmp_path).config.backend == "auto"
    with pytest.raises(ConfigError, match=r"encoder\.backend must be one of auto, naive, torch, native, compiled, fla"):
        CONFIGS[kind](backend="cuda")

"""Checkpoint folders: written, read, converted."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from folders import INDEX, WEIGHTS, edit, same, saved
from myfla.models import (
    GatedDeltaNetForCausalLM,
    checkpoint_write,
    load_backbone,
    load_config,
    load_model,
)
from myfla.models.auto import MODELS
from myfla.testing import cases, raises
from myfla.utils.errors import CheckpointError
from small_models import KINDS, prompt, small_model

LANGUAGE = {kind: language for kind, (_, _, language) in MODELS.items()}
BASE = {kind: base for kind, (_, base, _) in MODELS.items()}


# ---- round trips ----------------------------------------------------------------------------------------------------


@cases(kind=KINDS, shards=[None, "20KB", 30000], tied=[False, True])
def test_what_is_saved_is_read(kind, shards, tied):
    with TemporaryDirectory() as folder:
        model = saved(folder, kind, shards, tie_word_embeddings=tied, my_note="kept")
        names = sorted(os.listdir(folder))
        assert "config.json" in names and ((INDEX in names and len(names) > 4) if shards else names[1:] == [WEIGHTS])
        again = LANGUAGE[kind].from_pretrained(folder)
        assert same(model.state_dict(), again.state_dict()) and not again.training and again.config.my_note == "kept"
        assert again.config.architectures == [LANGUAGE[kind].__name__] and again.config.dtype == "float32"
        assert (again.lm_head.weight is again.model.embeddings.weight) == tied
        assert torch.equal(again(prompt()).logits, model(prompt()).logits)
        assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
        assert again.num_parameters() == model.num_parameters()
        found = [n for n in names if n.endswith(".safetensors")]
        held = [name for file in found for name in load_file(os.path.join(folder, file))]
        assert sorted(held) == sorted(name for name in model.state_dict() if not (tied and name == "lm_head.weight"))


@cases(kind=KINDS)
def test_any_class_reads_what_it_can(kind):
    with TemporaryDirectory() as folder:
        model = saved(folder, kind)
        for base in (BASE[kind].from_pretrained(folder), load_backbone(folder), load_backbone(Path(folder))):
            assert type(base) is BASE[kind] and same(base.state_dict(), model.model.state_dict())
        assert type(load_model(folder)) is LANGUAGE[kind] and type(load_config(folder)) is type(model.config)
        embeds = torch.randn(1, 4, 32)
        assert torch.equal(base(inputs_embeds=embeds)[0], model.model(inputs_embeds=embeds)[0])
        if kind == "gated_deltanet":
            assert base.layers[0].attn.A_log._no_weight_decay
    with TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        assert same(load_backbone(folder).state_dict(), model.model.state_dict())
        with raises(CheckpointError, "missing: lm_head.weight", "load_backbone"):
            load_model(folder)


@cases(kind=KINDS)
def test_number_formats_are_as_asked(kind):
    with TemporaryDirectory() as folder:
        model = saved(folder, kind, dtype=torch.bfloat16)
        half = LANGUAGE[kind].from_pretrained(folder)
        assert half.dtype == torch.bfloat16 and same(half.state_dict(), model.state_dict())
        if kind == "gated_deltanet":
            assert half.model.layers[0].attn.A_log.dtype == torch.float32
        for dtype in (torch.float32, "float32", "torch.float32"):
            assert load_model(folder, dtype=dtype).dtype == torch.float32
        assert load_model(folder, torch_dtype=torch.float64).dtype == torch.float64
        assert load_model(folder, dtype=None).dtype == torch.get_default_dtype()
        edit(Path(folder) / "config.json", lambda fields: fields.pop("dtype"))
        assert load_model(folder).dtype == torch.bfloat16
        with raises(ValueError, "dtype", "floating-point", "int8"):
            load_model(folder, dtype="int8")
        edit(Path(folder) / "config.json", lambda fields: fields.update(dtype="float7"))
        with raises(CheckpointError, "config.json", "dtype", "float7"):
            load_model(folder)


def test_fields_of_the_config_can_be_overridden():
    with TemporaryDirectory() as folder:
        model = saved(folder)
        other = load_model(folder, attn_mode="fused_recurrent", use_cache=False, trust_remote_code=True)
        assert other.model.layers[0].attn.mode == "fused_recurrent" and other(prompt()).past_key_values is None
        mine = GatedDeltaNetForCausalLM.from_pretrained(folder, config=model.config)
        assert mine.config is model.config
        with raises(TypeError, "from_pretrained", "use_cach", "use_cache"):
            load_model(folder, use_cach=False)
        assert load_config(folder, norm_eps=0.1).norm_eps == 0.1


def test_generation_settings_travel_with_the_folder():
    with TemporaryDirectory() as folder, TemporaryDirectory() as other:
        model = saved(folder)
        (Path(folder) / "generation_config.json").write_text('{"max_new_tokens": 2}')
        again = load_model(folder)
        assert again.generate(prompt()).shape == (2, 11)
        again.save_pretrained(other)
        assert load_model(other).generation_config == {"max_new_tokens": 2} and model.generation_config == {}


def test_saving_again_leaves_nothing_of_the_old_weights():
    with TemporaryDirectory() as folder:
        Path(folder, "notes.txt").write_text("mine")
        for shards in ("20KB", None, "40KB", "20KB"):
            model = saved(folder, shards=shards, hidden_size=32)
            assert same(load_model(folder).state_dict(), model.state_dict())
            files = [name for name in os.listdir(folder) if name.endswith(".safetensors")]
            assert (WEIGHTS in files) == (shards is None) and (INDEX in os.listdir(folder)) == (shards is not None)
            counts = {name.split("-of-")[-1] for name in files}
            assert len(counts) == 1 and "notes.txt" in os.listdir(folder)
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


@cases(fails=[1, 2, 3], numbered=[True, False])
def test_a_save_that_fails_leaves_the_old_folder_and_says_why(fails, numbered):
    words = "No space left on device"
    calls, save = [], checkpoint_write.save_file

    def full(*args):
        calls.append(1)
        if len(calls) == fails:
            raise OSError(28, words) if numbered else SafetensorError(f"I/O error: {words} (os error 28)")
        save(*args)

    with TemporaryDirectory() as folder:
        model = saved(folder, shards="20KB")
        try:
            checkpoint_write.save_file = full
            with raises(OSError, words, "model"):
                small_model("gated_deltanet", seed=5).save_pretrained(folder, max_shard_size="20KB")
        finally:
            checkpoint_write.save_file = save
        assert same(load_model(folder).state_dict(), model.state_dict())
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_views_and_strided_weights_are_written_as_they_are():
    with TemporaryDirectory() as folder:
        model = small_model("gated_deltanet")
        both = torch.randn(2, 32)
        model.model.norm.weight.data, model.model.layers[0].attn_norm.weight.data = both[0], both[1]
        model.lm_head.weight.data = torch.randn(32, 61).t()
        model.save_pretrained(folder)
        assert same(load_model(folder).state_dict(), model.state_dict())


# ---- older names ----------------------------------------------------------------------------------------------------


@cases(shape=[(6, 32), (6, 1, 1, 32)], prefix=["", "model."])
def test_older_rwkv7_names_are_converted(shape, prefix):
    model = small_model("rwkv7")
    source = model if prefix else model.model
    state = dict(source.state_dict())
    for i in range(2):
        stack = [state.pop(f"{prefix}layers.{i}.attn.x_{c}").reshape(32) for c in "rwkvag"]
        state[f"{prefix}layers.{i}.attn.x_x"] = torch.stack(stack).reshape(shape)
    kept = dict(state)
    fresh = type(source)(model.config)
    result = fresh.load_state_dict(state, strict=True)
    assert same(fresh.state_dict(), source.state_dict()) and not result.missing_keys and state.keys() == kept.keys()
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(state, os.path.join(folder, WEIGHTS))
        assert same(load_backbone(folder).state_dict(), model.model.state_dict())
        if prefix:
            assert same(load_model(folder).state_dict(), model.state_dict())


def test_a_stack_of_another_size_is_refused():
    with TemporaryDirectory() as folder:
        saved(folder, "rwkv7")

        def change(tensors):
            for c in "rwkvag":
                tensors.pop(f"model.layers.1.attn.x_{c}")
            tensors["model.layers.1.attn.x_x"] = torch.zeros(5, 32)

        edit(Path(folder) / WEIGHTS, change)
        with raises(CheckpointError, WEIGHTS, "model.layers.1.attn.x_x", "[1, 1, 32]", "[5, 32]"):
            load_model(folder)

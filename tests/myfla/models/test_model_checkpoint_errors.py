"""Checkpoint folders that are refused: missing, damaged, foreign, unsafe."""

import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from folders import INDEX, WEIGHTS, edit, same, saved
from myfla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, RWKV7Config, load_model
from myfla.testing import cases, raises
from myfla.utils.errors import CheckpointError
from small_models import small_model


def damage(case, folder):
    """Spoil a folder of one file; the words that the error must hold."""
    config, weights = folder / "config.json", folder / WEIGHTS
    norm = "model.norm.weight"
    if case == "no folder":
        for path in list(folder.iterdir()):
            path.unlink()
        folder.rmdir()
        return "must be an existing folder", "hubs are not contacted"
    if case == "no config":
        config.unlink()
        return "config.json", "beside the weights"
    if case == "config is no JSON":
        config.write_text("{")
        return "config.json", "must be JSON"
    if case == "config is a list":
        config.write_text("[1]")
        return "config.json", "JSON object", "list"
    if case == "deep config":
        config.write_text("[" * 100000)
        return "config.json", "must be JSON"
    if case == "unsupported":
        edit(config, lambda fields: fields.update(model_type="llama"))
        return "config.json", "model_type", "gated_deltanet", "rwkv7", "llama"
    if case == "hybrid":
        edit(config, lambda fields: fields.update(attn={"layers": [9], "num_heads": 2}))
        return "config.json", "attn.layers must be numbers of layers from 0 to 1", "[9]"
    if case == "bad field":
        edit(config, lambda fields: fields.update(hidden_size="wide"))
        return "config.json", "hidden_size", "positive integer", "'wide'"
    if case == "wrong size":
        edit(config, lambda fields: fields.update(intermediate_size=64))
        return WEIGHTS, "mlp.gate_proj.weight", "[64, 32]", "[48, 32]", "another model"
    if case == "missing":
        edit(weights, lambda tensors: tensors.pop(norm))
        return f"missing: {norm}", "of one model", str(folder)
    if case == "many missing":
        edit(config, lambda fields: fields.update(num_hidden_layers=4))
        return "missing: model.layers.2.attn.A_log", "more; the weights", "of one model"
    if case == "extra":
        edit(weights, lambda tensors: tensors.update(strange=torch.zeros(1)))
        return "extra: strange", "must hold nothing but"
    if case == "integers":
        edit(weights, lambda tensors: tensors.update({norm: torch.zeros(32, dtype=torch.int8)}))
        return norm, "floating point", "quantised"
    if case == "no weights":
        weights.unlink()
        return WEIGHTS, "must be there", INDEX
    if case == "pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
        return WEIGHTS, "Git LFS pointer"
    if case == "empty":
        weights.write_bytes(b"")
    elif case == "cut":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif case == "huge header":
        weights.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    return WEIGHTS, "must be safetensors", "fetch it again"


@cases(case=["no folder", "no config", "config is no JSON", "config is a list", "deep config", "unsupported", "hybrid",
             "bad field", "wrong size", "missing", "many missing", "extra", "integers", "no weights", "pointer",
             "empty", "cut", "huge header"])
def test_damaged_folders_are_refused(case):
    with TemporaryDirectory() as above:
        folder = Path(above) / "checkpoint"
        saved(folder)
        words = damage(case, folder)
        with raises(CheckpointError, *words):
            load_model(folder)


def test_every_truncation_is_refused():
    with TemporaryDirectory() as folder:
        saved(folder)
        path = Path(folder) / WEIGHTS
        data = path.read_bytes()
        for cut in range(16):
            path.write_bytes(data[: len(data) * cut // 16])
            with raises(CheckpointError, WEIGHTS, "must be safetensors"):
                load_model(folder)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_the_bomb_goes_off_when_it_is_unpickled():
    with TemporaryDirectory() as folder:
        pickle.loads(pickle.dumps(Bomb(str(Path(folder) / "sentinel")))).close()
        assert (Path(folder) / "sentinel").exists()


@cases(name=["pytorch_model.bin", "model.pt", WEIGHTS, "first shard", "config.json"])
def test_pickles_are_never_opened(name):
    with TemporaryDirectory() as folder:
        saved(folder, shards="20KB" if name == "first shard" else None)
        sentinel, path = Path(folder) / "sentinel", Path(folder) / name
        if name == "first shard":
            path = sorted(Path(folder).glob("model-00001-*"))[0]
        elif name != "config.json":
            (Path(folder) / WEIGHTS).unlink()
        words = ("config.json",) if name == "config.json" else ("pickle", "convert", path.name)
        for write in (lambda: torch.save(Bomb(str(sentinel)), str(path)),
                      lambda: path.write_bytes(pickle.dumps(Bomb(str(sentinel))))):  # fmt: skip
            write()
            with raises(CheckpointError, *words):
                load_model(folder)
            assert not sentinel.exists()


def swap(fields):
    where = fields["weight_map"]
    first, last = "model.embeddings.weight", "lm_head.weight"
    where[first], where[last] = where[last], where[first]


def test_indices_that_do_not_fit_are_refused():
    for change, words in (
        (lambda f: f.pop("weight_map"), (INDEX, "weight_map", "names of files")),
        (lambda f: f.update(weight_map={}), (INDEX, "weight_map")),
        (lambda f: f.update(weight_map={"a": 3}), (INDEX, "weight_map")),
        (lambda f: f["weight_map"].update(evil="../model.safetensors"), ("in this folder", "../model", "not read")),
        (lambda f: f["weight_map"].update(evil="/etc/passwd"), ("in this folder", "/etc/passwd")),
        (lambda f: f["weight_map"].update(evil="pytorch_model.bin"), (".safetensors files", "pytorch_model.bin")),
        (lambda f: f["weight_map"].update(evil="other.safetensors"), ("other.safetensors", "names it; fetch it too")),
        (lambda f: f["weight_map"].update(evil=f["weight_map"]["lm_head.weight"]), ("evil", "no such tensor")),
        (lambda f: f["weight_map"].pop("model.layers.0.attn.A_log"), ("must list every tensor", "0.attn.A_log")),
        (swap, ("must be in", "it is in model-")),
    ):
        with TemporaryDirectory() as folder:
            saved(folder, shards="20KB")
            edit(Path(folder) / INDEX, change)
            with raises(CheckpointError, *words):
                load_model(folder)


def test_shards_that_are_missing_or_hold_a_tensor_twice_are_refused():
    with TemporaryDirectory() as folder:
        saved(folder, shards="20KB")
        first, second = sorted(Path(folder).glob("model-*.safetensors"))[:2]
        tensors = load_file(str(second))
        edit(first, lambda own: own.update(tensors))
        with raises(CheckpointError, "must be in one file", first.name, "remove one"):
            load_model(folder)
        first.unlink()
        with raises(CheckpointError, first.name, "must be there", "no such file"):
            load_model(folder)


def test_a_tied_map_that_differs_is_refused():
    with TemporaryDirectory() as folder:
        model = saved(folder, tie_word_embeddings=True)
        path = Path(folder) / WEIGHTS
        edit(path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embeddings.weight"].clone()}))
        assert same(load_model(folder).state_dict(), model.state_dict())
        edit(path, lambda tensors: tensors["lm_head.weight"].add_(1))
        with raises(CheckpointError, WEIGHTS, "lm_head.weight", "set tie_word_embeddings to false in config.json"):
            load_model(folder)


def test_the_config_of_another_model_is_refused():
    with TemporaryDirectory() as folder:
        saved(folder, "rwkv7")
        with raises(CheckpointError, "config.json", "model_type", "'gated_deltanet'", "'rwkv7'", "load_model"):
            GatedDeltaNetForCausalLM.from_pretrained(folder)
        with raises(ValueError, "config", "gated_deltanet", "rwkv7"):
            GatedDeltaNetForCausalLM.from_pretrained(folder, config=RWKV7Config.from_pretrained(folder))


@cases(size=[0, "0", "fast", "3XB", True, -1])
def test_shard_sizes_that_cannot_be_read_are_refused(size):
    with TemporaryDirectory() as folder:
        with raises(ValueError, "max_shard_size", "200MB"):
            small_model("rwkv7").save_pretrained(folder, max_shard_size=size)
        GatedDeltaNetConfig().save_pretrained(folder)
        assert GatedDeltaNetConfig.from_pretrained(folder) == GatedDeltaNetConfig()

"""Checkpoint folders of small models, and ways to change what is in them."""

import json

import torch
from safetensors.torch import load_file, save_file

from small_models import small_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def saved(folder, kind="gated_deltanet", shards=None, **overrides):
    """A small model and the folder it was written to."""
    model = small_model(kind, **overrides)
    model.save_pretrained(folder, **({} if shards is None else {"max_shard_size": shards}))
    return model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def edit(path, change):
    """Change the tensors of a file or the fields of a JSON file."""
    if path.suffix == ".json":
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))
    else:
        tensors = load_file(str(path))
        change(tensors)
        save_file(tensors, str(path))

"""Every kind of file that is read here: how to write one, how to read it, and what it may refuse with."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

import readable_data as data
from app.encoding.files import KIND as PART
from app.encoding.files import write_part
from app.errors import RunError
from app.streaming.model import load_model
from app.streaming.pool import Packed
from app.streaming.store import FILE, Journal, Position, Store
from caches import filled
from encoders import load_encoder
from encoders.training.loop.checkpoint_io import SafeCheckpointIO
from folders import saved
from myfla.models import load_model as load_language_model
from myfla.models.sealed_file import read_sealed
from myfla.models.utils import Cache
from small_encoders import small
from state_subjects import states
from streams import make_run


@dataclasses.dataclass
class Kind:
    """One kind of file.

    Attributes:
        write: ``write(folder, seed)`` makes the folder's files and returns the path of the one in question.
        read: ``read(path)`` returns what is in it, as something comparable; a list of numbers, strings and bytes.
        notices: ``"all"``: every change to the content. A format of others has no room for a digest; it notices
            what breaks its ``"structure"``; of ``"lines"``, a shorter file is another file.
    """

    write: Callable[[Path, int], Path]
    read: Callable[[Path], Any]
    notices: str = "all"

    @property
    def sealed(self):
        return self.notices == "all"


def _tensors(named):
    return [(name, str(t.dtype), list(t.shape), t.detach().numpy().tobytes()) for name, t in sorted(named.items())]


def _encoder(name):
    def write(folder, seed):
        return small("gated_deltanet", torch.float32, seed=seed).save(folder).parent / name

    return Kind(write, lambda path: _tensors(load_encoder(path.parent).state_dict()))


def _write_cache(folder, seed):
    filled(2, seed=seed).save(folder / "c.cache")
    return folder / "c.cache"


def _write_checkpoint(folder, seed):
    torch.manual_seed(seed)
    tree = {"state_dict": {"w": torch.randn(3, 4)}, "epoch": seed, "loops": [{"batch": (1, 2)}, None, "x"]}
    SafeCheckpointIO().save_checkpoint(tree, folder / "last.ckpt")
    return folder / "last.ckpt"


def _read_checkpoint(path):
    tree = SafeCheckpointIO().load_checkpoint(path)
    return [_tensors(tree["state_dict"]), tree["epoch"], repr(tree["loops"])]


def _write_head(folder, seed):
    return make_run(folder, seed=seed) / "task.safetensors"


def _read_head(path):
    task = load_model(path.parent, "prediction").task
    return [repr(task.spec), *(repr(part.tolist()) for part in task.state_dict().values())]


def _write_state(folder, seed):
    store, draw = Store(folder, {"model": "m"}), np.random.default_rng(seed)
    found = store.fetch([f"s{i}" for i in range(40)])
    store.keep([Packed(s.id, 3, 7, draw.bytes(200)) for s in found])
    store.note(Journal(1, np.arange(9), draw.random((9, 3)).astype(np.float32)))
    store.move("-", Position(9, 100, 4, 9))
    store.commit()
    store.close()
    return folder / FILE


def _read_state(path):
    store = Store(path.parent, {"model": "m"})
    try:
        sessions = store.fetch([f"s{i}" for i in range(40)])
        journal = [(entry.seq, entry.ids.tolist(), entry.features.tolist()) for entry in store.journal(3)]
        return [sessions, journal, store.position("-")]
    finally:
        store.close()


def _official(name):
    def write(folder, seed):
        saved(folder)
        return folder / name

    return Kind(write, lambda path: _tensors(load_language_model(path.parent).state_dict()), "structure")


def _write_part(folder, seed):
    write_part(folder / "part-00000000.safetensors", data.encoded(seed), False)
    return folder / "part-00000000.safetensors"


def _read_part(path):
    tensors, facts = read_sealed(path, PART, RunError)
    return [_tensors(tensors), repr(facts)]


KINDS = {
    "encoder weights": _encoder("encoder.safetensors"),
    "encoder manifest": _encoder("encoder.json"),
    "cache": Kind(_write_cache, lambda path: [t.numpy().tobytes() for t in states(Cache.load(path))]),
    "training checkpoint": Kind(_write_checkpoint, _read_checkpoint),
    "classifier head": Kind(_write_head, _read_head),
    "stream state": Kind(_write_state, _read_state),
    "embeddings": Kind(_write_part, _read_part),
    "official weights": _official("model.safetensors"),
    "official config": _official("config.json"),
    "run config": Kind(data.write_run_config, data.read_run_config, "structure"),
    "run facts": Kind(data.write_facts, data.read_facts, "structure"),
    "embeddings as Parquet": Kind(data.write_encoded, data.read_encoded, "structure"),
    "Parquet table": Kind(data.write_parquet, data.read_table, "structure"),
    "CSV table": Kind(data.write_csv, data.read_table, "lines"),
    ".ts file": Kind(data.write_ts, data.read_sequences, "lines"),
    "text": Kind(data.write_text, data.read_text, "lines"),
}


def same_json(a, b):
    """Whether two files hold the same JSON: a space that became a tab changes nothing."""
    try:
        return json.loads(a.decode()) == json.loads(b.decode())
    except ValueError:
        return False

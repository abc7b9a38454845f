"""Files made to do harm: refused by name, nothing in them is run, and they take no memory to speak of."""

import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile

import pytest
import torch

from app.errors import RunError
from app.streaming.model import load_model as load_run
from app_runs import compose_app, run_app
from encoders import load_encoder
from encoders.files import seal_manifest
from myfla.models import load_model
from myfla.testing import cases, raises
from myfla.utils.errors import CheckpointError
from readable_files import KINDS
from streams import make_run

BINARY = ("encoder weights", "cache", "training checkpoint", "classifier head", "official weights", "stream state",
          "embeddings", "embeddings as Parquet", "Parquet table", ".ts file", "run config", "run facts")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


def pickled(mark):
    return pickle.dumps(Bomb(mark))


def torch_file(mark):
    buffer = io.BytesIO()
    torch.save({"a": Bomb(mark), "b": torch.zeros(3)}, buffer)
    return buffer.getvalue()


def zip_bomb(mark):
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(1 << 8):
            file.write(b"\0" * (1 << 20))
    return buffer.getvalue()


def huge_header(mark):
    """A safetensors file whose header claims four exabytes."""
    return struct.pack("<Q", 1 << 62) + b"{}" * 100


def huge_tensor(mark):
    """A header that promises a tensor of a terabyte."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 19, 1 << 19], "data_offsets": [0, 1 << 40]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 64


def overlapping(mark):
    """Two tensors over the same bytes, one of them beyond the end."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": entry, "c": {**entry, "data_offsets": [8, 24]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 16


def deep_header(mark):
    nested = b"[" * 200000
    return struct.pack("<Q", len(nested)) + nested


ATTACKS = {"pickle": pickled, "torch file": torch_file, "zip bomb": zip_bomb, "huge header": huge_header,
           "huge tensor": huge_tensor, "overlapping tensors": overlapping, "deep header": deep_header}


@pytest.fixture(scope="module")
def attack_bytes(tmp_path_factory):
    mark = tmp_path_factory.mktemp("mark") / "was-run"
    return mark, {name: make(mark) for name, make in ATTACKS.items()}


def test_the_bomb_works(tmp_path):
    pickle.loads(pickled(tmp_path / "mark"))
    assert (tmp_path / "mark").exists()


@cases(kind=BINARY, attack=list(ATTACKS))
def test_a_hostile_file_is_refused_and_nothing_is_run(kind, attack, attack_bytes, tmp_path):
    mark, made = attack_bytes
    path = KINDS[kind].write(tmp_path, 0)
    path.write_bytes(made[attack])
    before = _peak()
    with pytest.raises(ValueError, match="|".join(map(re.escape, (path.name, str(tmp_path))))):
        KINDS[kind].read(path)
    assert not mark.exists()
    assert _peak() - before < 200 << 20, "it took hundreds of megabytes to refuse it"


def _peak():
    """The most memory that this process ever had, in bytes."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reseal(folder, **changes):
    manifest = json.loads((folder / "encoder.json").read_text())
    manifest.pop("sha256")
    (folder / "encoder.json").write_bytes(seal_manifest({**manifest, **changes}))
    return manifest


@cases(name=["../encoder.safetensors", "/etc/passwd", "sub/../../encoder.safetensors", "..\\encoder.safetensors"])
def test_a_path_in_a_manifest_reads_nothing_elsewhere(name, tmp_path):
    folder = make_run(tmp_path / "run")
    (tmp_path / "encoder.safetensors").write_bytes((folder / "encoder.safetensors").read_bytes())
    manifest = _reseal(folder)
    (entry,) = manifest["files"].values()
    _reseal(folder, files={name: entry})
    with raises(CheckpointError, "must name one file, NAME.safetensors in its own folder"):
        load_encoder(folder)
    with raises(RunError, "must hold an intact encoder"):
        load_run(folder, "prediction")


@cases(name=["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors"])
def test_a_path_in_an_index_reads_nothing_elsewhere(name, tmp_path):
    path = KINDS["official weights"].write(tmp_path, 0)
    path.rename(tmp_path.parent / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with raises(CheckpointError, "weight_map must name .safetensors files in this folder"):
        load_model(tmp_path)


TARGETS = ({"_target_": "os.mkdir", "path": "was-run"}, {"_target_": "builtins.open", "file": "was-run", "mode": "w"})


@cases(target=range(len(TARGETS)))
def test_a_target_in_a_stored_config_is_refused(target, tmp_path):
    folder = make_run(tmp_path / "run")
    manifest = _reseal(folder)
    _reseal(folder, config={**manifest["config"], **TARGETS[target]})
    with raises(CheckpointError, "encoder._target_"):
        load_encoder(folder)
    assert not os.path.exists("was-run")


def test_a_target_in_the_config_of_an_official_folder_is_plain_data(tmp_path):
    path = KINDS["official config"].write(tmp_path, 0)
    fields = json.loads(path.read_text())
    mark = str(tmp_path / "was-run")
    fields.update(_target_="os.mkdir", path=mark, auto_map={"AutoModel": "evil.Evil"})
    path.write_text(json.dumps(fields))
    (tmp_path / "evil.py").write_text(f"open({mark!r}, 'w')")
    load_model(tmp_path)
    assert not os.path.exists(mark)


@cases(line=["!!python/object/apply:os.mkdir ['was-run']", "seed: !!python/object/apply:os.mkdir ['was-run']",
             "job: {_target_: os.mkdir, path: was-run}", "encoder: {name: gru, _target_: os.mkdir, path: was-run}"])
def test_code_in_the_config_of_a_run_is_refused(line, tmp_path):
    path = KINDS["run config"].write(tmp_path, 0)
    key = line.split(":")[0]
    kept, inside = [], False
    for old in path.read_text().splitlines():
        inside = old.startswith(key + ":") or (inside and old.startswith(" "))
        kept += [] if inside else [old]
    path.write_text("\n".join([*kept, line]) + "\n")
    with raises(RunError, str(tmp_path)):
        KINDS["run config"].read(path)
    assert not os.path.exists("was-run")


@cases(override=["+encoder._target_=os.mkdir", "+job._target_=os.mkdir", "+trainer.callbacks._target_=os.mkdir",
                 "+data.x={_target_:os.mkdir,path:was-run}", "+_target_=os.mkdir", "+encoder.hiden_size=8"])
def test_a_setting_that_nothing_reads_is_refused(override, tmp_path):
    """Hydra adds what begins with a plus; a target, or a misspelt name, must not pass for a setting."""
    from cfg.validation import ConfigError, known_fields

    key = override[1:].split("=")[0]
    key = {"trainer.callbacks._target_": "trainer.callbacks"}.get(key, key)
    with raises(ConfigError, f"{key} must be a setting that exists; got "):
        known_fields(compose_app([override]))
    if override.startswith("+encoder.h"):
        with raises(ConfigError, "did you mean 'hidden_size'?"):
            known_fields(compose_app([override]))
        done = run_app(tmp_path, override)
        assert done.returncode == 1 and done.stderr.startswith("error: encoder.hiden_size must be a setting")

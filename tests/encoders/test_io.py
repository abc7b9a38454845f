"""Files of an encoder: what was saved is read back, and anything else is refused.

Long because every way in which a file can be wrong has its case here.
"""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as format_tensors

from encoders import build_encoder, load_encoder
from encoders.files import seal_manifest
from encoders.io import _check_no_pickle
from myfla.testing import cases, raises
from myfla.utils.errors import CheckpointError
from small_encoders import NAMES, small

ROOT = Path(__file__).resolve().parents[2]
X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(7))


def same(a, b, x=X):
    dtype = next(a.parameters()).dtype
    return torch.equal(a(x.to(dtype)).embedding, b(x.to(dtype)).embedding)


@pytest.fixture
def saved(tmp_path):
    """A folder with a saved encoder."""
    small("gated_deltanet", torch.float32).save(tmp_path)
    return tmp_path


def reseal(folder, **changes):
    """Write a manifest with changes, as someone who knows the format would."""
    path = folder / "encoder.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    manifest.update(changes)
    path.write_bytes(seal_manifest(manifest))


def replace_weights(folder, data):
    """Put other bytes in the place of the weights and make the manifest agree."""
    (folder / "encoder.safetensors").write_bytes(data)
    reseal(folder, files={"encoder.safetensors": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}})


@cases(name=NAMES, dtype=[torch.float32, torch.float64, torch.bfloat16], direction=["causal", "bidirectional"])
def test_a_loaded_encoder_gives_the_same_embeddings(tmp_path, name, dtype, direction):
    encoder = small(name, dtype, direction=direction, pooling="attention")
    assert encoder.save(tmp_path) == tmp_path / "encoder.safetensors"
    assert sorted(os.listdir(str(tmp_path))) == ["encoder.json", "encoder.safetensors"]
    again = load_encoder(tmp_path)
    assert again.config == encoder.config and not again.training and same(encoder, again)
    for (key, a), (other, b) in zip(encoder.state_dict().items(), again.state_dict().items()):
        assert key == other and a.dtype == b.dtype and torch.equal(a, b)


def test_token_encoders_are_kept_too(tmp_path):
    encoder, ids = small("gated_deltanet", vocab_size=9), torch.tensor([[1, 8, 0]])
    encoder.save(str(tmp_path / "ids.safetensors"))
    assert torch.equal(load_encoder(str(tmp_path / "ids.json"))(ids).embedding, encoder(ids).embedding)


@cases(path=[".", "encoder.safetensors", "encoder.json"])
def test_folder_weights_and_manifest_name_the_same_encoder(saved, path):
    assert same(load_encoder(saved / path), small("gated_deltanet", torch.float32))


def test_missing_folders_are_made_and_an_older_encoder_is_replaced(tmp_path):
    folder = tmp_path / "a" / "b"
    small("rwkv7", torch.float32).save(folder)
    newer = small("gated_deltanet", torch.float32, seed=5)
    newer.save(folder)
    assert same(load_encoder(folder), newer)
    assert len(os.listdir(str(folder))) == 2


def test_loading_leaves_the_random_state_alone(saved):
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    load_encoder(saved)
    assert torch.equal(torch.rand(3), want)


def test_a_loaded_encoder_trains(saved):
    encoder = load_encoder(saved).train()
    encoder(X).embedding.sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in encoder.parameters())


def test_the_manifest_says_what_is_in_the_files(saved):
    manifest = json.loads((saved / "encoder.json").read_text())
    assert (manifest["format"], manifest["format_version"]) == ("myfla-encoder", 2)
    assert manifest["config"]["name"] == "gated_deltanet" and manifest["config"]["num_v_heads"] == 4
    data = (saved / "encoder.safetensors").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert manifest["files"] == {"encoder.safetensors": entry}
    assert set(manifest["versions"]) == {"encoder", "myfla", "python", "safetensors", "torch"}


def test_files_have_the_mode_that_umask_says(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has no umask")
    old = os.umask(0o022)
    try:
        small("gated_deltanet").save(tmp_path)
    finally:
        os.umask(old)
    assert {os.stat(str(path)).st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def refused(path, *parts):
    return raises(CheckpointError, "load_encoder: ", str(path), *parts)


def test_what_is_missing_is_named(tmp_path, saved):
    with refused("encoder.json", "must be a readable file; got No such file"):
        load_encoder(tmp_path / "nowhere")
    os.remove(str(saved / "encoder.json"))
    with refused("encoder.json", "must lie beside the weights", "got no such file; copy both files"):
        load_encoder(saved)


def test_missing_weights_are_named(saved):
    os.remove(str(saved / "encoder.safetensors"))
    with refused("encoder.safetensors", "must be a readable file; got No such file", "use a copy, or write it again"):
        load_encoder(saved)


@cases(file=["encoder.safetensors", "encoder.json"], sixteenth=range(16))
def test_a_file_cut_short_anywhere_is_refused(saved, file, sixteenth):
    path = saved / file
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * sixteenth // 16])
    with refused(path, "encoder.save"):
        load_encoder(saved)


@cases(file=["encoder.safetensors", "encoder.json"])
def test_a_flipped_bit_anywhere_is_refused(saved, file):
    path = saved / file
    data = path.read_bytes()
    for i in range(64):
        position = len(data) * i // 64
        flipped = bytearray(data)
        flipped[position] ^= 1 << (i % 8)
        path.write_bytes(bytes(flipped))
        if file == "encoder.json" and _same_json(data, bytes(flipped)):
            continue  # a space that became another blank: the content is what it was
        with refused(path):
            load_encoder(saved)


def _same_json(a, b):
    try:
        return json.loads(a.decode()) == json.loads(b.decode())
    except ValueError:
        return False


@cases(extra=[b"\0", b"x" * 100])
def test_bytes_behind_the_end_are_refused(saved, extra):
    path = saved / "encoder.safetensors"
    path.write_bytes(path.read_bytes() + extra)
    with refused(path, "bytes, as its manifest says"):
        load_encoder(saved)


def test_swapped_weights_are_refused(tmp_path, saved):
    other = tmp_path / "other"
    small("gated_deltanet", torch.float32, seed=9).save(other)
    shutil.copy(str(other / "encoder.safetensors"), str(saved / "encoder.safetensors"))
    with refused("encoder.safetensors", "must match the sha256 in its manifest", "or belongs to another manifest"):
        load_encoder(saved)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


@cases(kind=["pickle", "torch"], manifest=["none", "old", "agreeing"])
def test_pickles_are_refused_and_never_run(saved, kind, manifest):
    target, path = saved / "was-run", saved / "encoder.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save({"a": Bomb(target)}, str(path))
    if manifest == "none":
        os.remove(str(saved / "encoder.json"))
    elif manifest == "agreeing":
        replace_weights(saved, path.read_bytes())
    with refused(path, "must be a safetensors file; got a pickle or zip file; loading one runs code"):
        load_encoder(saved)
    assert not target.exists()


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
    """A tensor's name one byte longer makes the header eight bytes longer at times, until its length ends in 0x80."""
    for size in range(200):
        data = format_tensors({"x" * (size + 1): torch.zeros(1)}, {"format": "myfla-encoder"})
        if data.startswith(b"\x80"):
            break
    assert data.startswith(b"\x80")
    _check_no_pickle(tmp_path / "a.safetensors", data)
    with refused("a.safetensors", "a pickle or zip file"):
        _check_no_pickle(tmp_path / "a.safetensors", pickle.dumps({"a": 1}))


@cases(data=[b"", b"\xff" * 8 + b"x" * 100, b"\x10" + b"\0" * 7 + b"not json at all!", b"{}"])
def test_weights_that_are_no_safetensors_are_refused(saved, data):
    replace_weights(saved, data)
    with refused("encoder.safetensors", "must be a safetensors file"):
        load_encoder(saved)


@cases(name=["../encoder.safetensors", "/etc/encoder.safetensors", "a/encoder.safetensors", "a\\encoder.safetensors",
             "C:encoder.safetensors", ".encoder.safetensors", "encoder.bin", "", "encoder.safetensors\n"])
def test_a_manifest_cannot_lead_out_of_its_folder(saved, name):
    reseal(saved, files={name: {"sha256": "0" * 64, "bytes": 1}})
    with refused("encoder.json", "must name one file, NAME.safetensors in its own folder", "do not load it"):
        load_encoder(saved)


@cases(files=[None, [], {}, {"a.safetensors": {}, "b.safetensors": {}}])
def test_a_manifest_names_exactly_one_file(saved, files):
    reseal(saved, files=files)
    with refused("encoder.json", "must name one file"):
        load_encoder(saved)


@cases(entry=[None, {}, {"sha256": 1, "bytes": 1}, {"sha256": "0", "bytes": "1"}, {"sha256": "0", "bytes": True}])
def test_a_manifest_gives_size_and_digest(saved, entry):
    reseal(saved, files={"encoder.safetensors": entry})
    with refused("encoder.json", "must give bytes and sha256 of its file"):
        load_encoder(saved)


@cases(text=["", "not json", "[" * 100000, "\xff\xfe"])
def test_a_manifest_that_is_no_json_is_refused(saved, text):
    (saved / "encoder.json").write_bytes(text.encode("latin-1"))
    with refused("encoder.json", "must be JSON"):
        load_encoder(saved)


@cases(content=[[], {}, {"format": "other"}, 3, None])
def test_a_foreign_manifest_is_refused(saved, content):
    (saved / "encoder.json").write_text(json.dumps(content))
    with refused("encoder.json", "must have the format 'myfla-encoder'", "the file is foreign"):
        load_encoder(saved)


@cases(version=[0, 3, "1", None, True])
def test_another_format_version_is_refused(saved, version):
    reseal(saved, format_version=version)
    with refused("encoder.json", f"must have a format_version from 1 to 2; got {version!r}; it was written by a newer"):
        load_encoder(saved)


def test_an_edited_manifest_is_refused(saved):
    path = saved / "encoder.json"
    path.write_text(path.read_text().replace('"allow_neg_eigval": true', '"allow_neg_eigval": false'))
    with refused(path, "must match its own sha256; got another content"):
        load_encoder(saved)


def test_a_huge_manifest_is_not_read(saved):
    (saved / "encoder.json").write_bytes(b" " * ((16 << 20) + 1))
    with refused("encoder.json", "must be at most 16777216 bytes; got 16777217"):
        load_encoder(saved)


def test_an_encoder_that_is_not_installed_is_named(saved):
    config = json.loads((saved / "encoder.json").read_text())["config"]
    reseal(saved, config={**config, "name": "acne"}, versions={"encoder": "acne-encoder 2.0"})
    with refused("encoder.json", "must name an encoder that is installed; got encoder 'acne' is not known",
                 "install acne-encoder 2.0"):
        load_encoder(saved)


@cases(change=[{"num_layers": 0}, {"_target_": "os.system"}, {"hidden_size": None}, {"name": None}])
def test_a_config_that_breaks_a_rule_is_refused(saved, change):
    config = json.loads((saved / "encoder.json").read_text())["config"]
    reseal(saved, config={**config, **change})
    with refused("encoder.json", "must hold a config of its encoder; got encoder.", next(iter(change))):
        load_encoder(saved)


@cases(config=[None, [], "gated_deltanet"])
def test_a_config_of_another_kind_is_refused(saved, config):
    reseal(saved, config=config)
    with refused("encoder.json", "must hold a config of its encoder; got build_encoder: config must be"):
        load_encoder(saved)


def test_a_config_too_large_for_its_weights_is_refused_before_memory_is_taken(saved):
    config = json.loads((saved / "encoder.json").read_text())["config"]
    reseal(saved, config={**config, "input_size": 1 << 20, "hidden_size": 1 << 16})  # 256 GiB in one matrix
    with refused("encoder.safetensors", "must hold input.weight as [65536, 1048576]", "got [8, 3]"):
        load_encoder(saved)


def test_tensors_of_another_encoder_are_refused(saved):
    config = json.loads((saved / "encoder.json").read_text())["config"]
    reseal(saved, config={**config, "num_layers": 3})
    with refused("encoder.safetensors", "must hold the tensors of the encoder in its", "blocks.2.", "unknown []"):
        load_encoder(saved)
    reseal(saved, config={**config, "num_layers": 1})
    with refused("encoder.safetensors", "missing []", "blocks.1."):
        load_encoder(saved)


def test_tensors_of_another_kind_are_refused(saved):
    tensors = small("gated_deltanet", torch.float32).state_dict()
    tensors["input.bias"] = torch.zeros(8, dtype=torch.int64)
    replace_weights(saved, format_tensors(tensors))
    with refused("encoder.safetensors", "must hold input.bias as [8] torch.float32; got [8] torch.int64"):
        load_encoder(saved)


def test_a_folder_that_cannot_be_written_leaves_the_old_encoder(saved, monkeypatch):
    import myfla.utils.atomic as files

    old = load_encoder(saved)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with raises(OSError, "No space left on device"):
        small("rwkv7", torch.float32).save(saved)
    monkeypatch.undo()
    assert same(load_encoder(saved), old)
    assert sorted(os.listdir(str(saved))) == ["encoder.json", "encoder.safetensors"]


@cases(step=["weights", "manifest", "rename"])
def test_a_writer_that_stops_between_two_steps_leaves_an_encoder(saved, monkeypatch, step):
    import encoders.saving as io

    old, new = load_encoder(saved), small("rwkv7", torch.float32)
    write = io.write_atomic
    done = []

    def stopping(path, data):
        write(path, data)
        done.append(path)
        if len(done) == {"weights": 1, "manifest": 2}.get(step):
            raise KeyboardInterrupt

    monkeypatch.setattr(io, "write_atomic", stopping)
    if step == "rename":
        monkeypatch.setattr(io.Path, "unlink", lambda self: None)
        new.save(saved)
    else:
        with pytest.raises(KeyboardInterrupt):
            new.save(saved)
    monkeypatch.undo()
    assert same(load_encoder(saved), old if step == "weights" else new)
    newest = small("rwkv7", torch.float32, seed=3)
    newest.save(saved)
    assert sorted(os.listdir(str(saved))) == ["encoder.json", "encoder.safetensors"]
    assert same(load_encoder(saved), newest)


WRITER = """
import sys, torch
sys.path[:0] = {path!r}
from small_encoders import small
encoders = [small("gated_deltanet", torch.float32, seed=seed, hidden_size=64) for seed in (1, 2)]
print("ready", flush=True)
while True:
    for encoder in encoders:
        encoder.save({folder!r})
"""


def test_a_writer_that_is_killed_leaves_an_encoder(tmp_path):
    if os.name == "nt":
        pytest.skip("needs SIGKILL")
    path = [str(ROOT / part) for part in ("src", "libs", "tests/support")]
    x = X.repeat(1, 1, 1)
    wanted = [small("gated_deltanet", torch.float32, seed=seed, hidden_size=64)(x).embedding for seed in (1, 2)]
    for i in range(4):
        code = WRITER.format(path=path, folder=str(tmp_path))
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            assert writer.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 60
            while not (tmp_path / "encoder.json").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.0371 * (i + 1))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        got = load_encoder(tmp_path)(x).embedding
        assert any(torch.equal(got, want) for want in wanted)


def test_a_plain_built_encoder_saves_in_training_mode(tmp_path):
    encoder = build_encoder({"name": "rwkv7", "input_size": 3, "hidden_size": 8})
    assert encoder.training
    encoder.save(tmp_path)
    assert encoder.training and not load_encoder(tmp_path).training

"""A cache as a file: what was saved is read back, and anything else is refused."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from caches import filled, same
from myfla.models import cache_file
from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.models.utils import Cache
from myfla.testing import cases, raises
from myfla.utils.errors import CacheError


@cases(dtype=[torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_save_and_load_give_the_same_cache(tmp_path, dtype):
    cache = Cache.stack([filled(2, lengths=torch.tensor([5, 1])), filled(1, offset=2), Cache()]).to(dtype)
    cache.fingerprint = "a"
    cache.save(tmp_path / "c")
    again = Cache.load(tmp_path / "c", fingerprint="a", layers=2, batch=4, dtype=dtype)
    assert same(cache, again)
    assert [c.batch_size for c in again.unstack()] == [2, 1, 1]


def test_every_structure_survives(tmp_path):
    cache = Cache()
    shared = torch.randn(2, 6)
    cache.update(recurrent_state=[torch.randn(2, 3), None], conv_state=(shared[:, :3], shared[:, 3:]), offset=0,
                 ffn_state={"a": shared.t()[:2], "n": 3}, cache_kwargs={"window_size": 4})
    cache.update(attn_state=(torch.randn(2, 0, 1), torch.randn(2, 0, 1)), layer_idx=2)
    cache.save(str(tmp_path / "c"))
    again = Cache.load(str(tmp_path / "c"))
    assert again[1] is None and again.layers[0].window_size == 4 and len(again) == 3
    assert again[0]["recurrent_state"][1] is None and isinstance(again[0]["recurrent_state"], list)
    assert torch.equal(again[0]["ffn_state"]["a"], shared.t()[:2]) and again[0]["ffn_state"]["n"] == 3
    assert again[2]["attn_state"][0].shape == (2, 0, 1)
    Cache().save(tmp_path / "empty")
    assert len(Cache.load(tmp_path / "empty")) == 0


def test_equal_caches_give_equal_files_and_gradients_are_no_hindrance(tmp_path):
    cache = filled(2)
    cache.save(tmp_path / "a")
    for state in (s for layer in cache for s in (layer["recurrent_state"],)):
        state.requires_grad_()
    cache.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_fingerprint_of_the_caller_wins(tmp_path):
    filled(1).save(tmp_path / "c", fingerprint="x")
    assert Cache.load(tmp_path / "c", fingerprint="x").fingerprint == "x"


def test_load_moves_to_a_device(tmp_path):
    filled(1).save(tmp_path / "c")
    assert Cache.load(tmp_path / "c", device="meta")[0]["recurrent_state"].device.type == "meta"


def test_a_loaded_cache_does_not_touch_its_file(tmp_path):
    filled(1).save(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    Cache.load(tmp_path / "c")[0]["recurrent_state"].zero_()
    assert (tmp_path / "c").read_bytes() == before


@cases(field=["fingerprint", "layers", "batch", "dtype"])
def test_what_is_not_as_asked_is_refused_by_name(tmp_path, field):
    filled(2).save(tmp_path / "c", fingerprint="a")
    wanted = {"fingerprint": "b", "layers": 1, "batch": 3, "dtype": torch.bfloat16}[field]
    with raises(CacheError, "Cache.load", field, str(wanted)):
        Cache.load(tmp_path / "c", **{field: wanted})


def test_every_shortened_file_is_refused(tmp_path):
    filled(2).save(tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    for sixteenth in range(16):
        (tmp_path / "c").write_bytes(data[: len(data) * sixteenth // 16])
        with raises(CacheError, "myfla.cache", str(tmp_path / "c")):
            Cache.load(tmp_path / "c")


def test_every_flipped_bit_is_refused(tmp_path):
    filled(2).save(tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(8 * len(data), (256,), generator=generator).tolist() + list(range(64, 192))
    for bit in places:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "c").write_bytes(bytes(damaged))
        with raises(CacheError, "myfla.cache"):
            Cache.load(tmp_path / "c")


def test_trailing_bytes_and_swapped_contents_are_refused(tmp_path):
    filled(1, seed=1).save(tmp_path / "a")
    filled(1, seed=2).save(tmp_path / "b")
    a, b = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    assert len(a) == len(b) and a != b
    half = len(a) - 100
    for data in (a + b"\0", a[:half] + b[half:]):
        (tmp_path / "c").write_bytes(data)
        with raises(CacheError, "sha256", "damaged"):
            Cache.load(tmp_path / "c")


class Bomb:
    """Makes a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_foreign_files_are_refused_and_never_run(tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "c"
    file.write_bytes(pickle.dumps(Bomb(str(mark))))
    with raises(CacheError, "format"):
        Cache.load(file)
    torch.save({"a": Bomb(str(mark))}, str(file))
    with raises(CacheError, "format"):
        Cache.load(file)
    assert not mark.exists()
    save_file({"a": torch.zeros(1)}, str(file), {"x": "y"})
    with raises(CacheError, "format", "'myfla.cache'"):
        Cache.load(file)
    write_sealed(file, "myfla.weights", {}, {})
    with raises(CacheError, "format", "'myfla.cache'", "'myfla.weights'"):
        Cache.load(file)
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with raises(CacheError, "format", "cut short"):
        Cache.load(file)
    nested = b"[" * 100000
    file.write_bytes(struct.pack("<Q", len(nested)) + nested)
    with raises(CacheError, "format"):
        Cache.load(file)
    for path in (tmp_path / "missing", tmp_path):
        with raises(CacheError, "path", str(path)):
            Cache.load(path)


@cases(change=[("version", 2), ("layout", "N,HV,V,K"), ("layers", [{}]), ("layers", None)])
def test_another_version_or_layout_is_refused_by_name(tmp_path, change):
    filled(1).save(tmp_path / "c")
    tensors, facts = read_sealed(tmp_path / "c", cache_file.KIND, CacheError)
    field, value = change
    write_sealed(tmp_path / "c", cache_file.KIND, tensors, {**facts, field: value})
    with raises(CacheError, "Cache.load", field):
        Cache.load(tmp_path / "c")


def test_the_header_is_readable_by_anyone(tmp_path):
    filled(1).save(tmp_path / "c", fingerprint="a")
    data = (tmp_path / "c").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]].decode())
    facts = json.loads(header["__metadata__"]["myfla"])["facts"]
    assert facts["version"] == 1 and facts["layout"] == "N,HV,K,V" and facts["about"]["fingerprint"] == "a"
    assert "layers.0.recurrent_state" in header


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    filled(1, seed=1).save(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space"):
                filled(1, seed=2).save(tmp_path / "c")
        assert (tmp_path / "c").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileNotFoundError):
        filled(1).save(tmp_path / "none" / "c")


def test_a_file_has_the_mode_the_umask_gives(tmp_path):
    if os.name == "nt":
        pytest.skip("no umask")
    old = os.umask(0o027)
    try:
        filled(1).save(tmp_path / "c")
    finally:
        os.umask(old)
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o640


def test_a_state_that_no_file_can_hold_is_refused(tmp_path):
    cache = Cache()
    cache.update(recurrent_state=torch.zeros(1, 1))
    cache[0]["ffn_state"] = {1, 2}
    with raises(CacheError, "Cache.save: layers.0.ffn_state", "set"):
        cache.save(Path(tmp_path) / "c")

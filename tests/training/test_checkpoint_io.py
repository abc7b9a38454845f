"""Checkpoints without pickle."""

import pytest
import torch

from encoders.training.loop.checkpoint_io import SafeCheckpointIO, pack, unpack
from myfla.utils.errors import CheckpointError

TREE = {
    "state_dict": {"w": torch.arange(6.0).view(2, 3), "tied": torch.ones(2)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "betas": (0.9, 0.999)}],
    "epoch": 3, "best": float("inf"), "name": "x", "flag": True, "none": None, "empty": {},
}


def same(got, want):
    if isinstance(want, torch.Tensor):
        return torch.equal(got, want) and got.dtype == want.dtype
    if isinstance(want, dict):
        return list(got) == list(want) and all(same(got[key], want[key]) for key in want)
    if isinstance(want, (list, tuple)):
        return type(got) is type(want) and len(got) == len(want) and all(map(same, got, want))
    return got == want and type(got) is type(want)


def test_a_checkpoint_comes_back_whole(tmp_path):
    io, path = SafeCheckpointIO(), tmp_path / "deep" / "best.ckpt"
    io.save_checkpoint(TREE, path)
    assert same(io.load_checkpoint(path), TREE)
    io.remove_checkpoint(path)
    assert not path.exists()


def test_shared_memory_is_no_obstacle(tmp_path):
    weight = torch.ones(3)
    SafeCheckpointIO().save_checkpoint({"a": weight, "b": weight.view(3)}, tmp_path / "c")
    assert torch.equal(SafeCheckpointIO().load_checkpoint(tmp_path / "c")["b"], weight)


def test_objects_are_refused():
    with pytest.raises(TypeError, match="a value of type object cannot be saved without pickle"):
        pack({"x": object()}, {})
    tensors = {}
    assert unpack(pack((1, [2, "3"]), tensors), tensors) == (1, [2, "3"])


def test_a_flipped_bit_a_cut_and_a_pickle_are_refused(tmp_path):
    path = tmp_path / "c.ckpt"
    SafeCheckpointIO().save_checkpoint(TREE, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 4
    for damaged in (bytes(flipped), whole[:-5], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"c.ckpt"):
            SafeCheckpointIO().load_checkpoint(path)
    torch.save(TREE, str(path))
    with pytest.raises(CheckpointError, match=r"c.ckpt"):
        SafeCheckpointIO().load_checkpoint(path)
    with pytest.raises(CheckpointError, match="nowhere"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "nowhere")

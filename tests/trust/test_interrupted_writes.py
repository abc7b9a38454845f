"""Whatever ends a writer - SIGKILL, a full disk, a read-only folder - the old file or the new one is there, whole."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

import writers
from app.jobs.export import run as export
from cfg.app import AppConfig
from cfg.export import ExportJobConfig
from children import as_nobody, finish, kill_after, needs_fork, start
from encoders import load_encoder
from export_subjects import small_encoder
from folders import INDEX
from myfla.models import load_model
from myfla.testing import cases
from myfla.utils.errors import CheckpointError
from small_models import small_model

pytestmark = needs_fork


def forever(writer, folder):
    """Save both contents in turn, and say that the first is there."""
    (folder / "begun").touch()
    while True:
        for content in writer.contents:
            writer.save(content, folder)


def survive_kills(kind, folder, times):
    """Kill a writer at a random moment, many times; returns how often each content was found."""
    writer, draw = writers.make(kind), random.Random(7)
    work = folder / "work"
    work.mkdir()
    writer.save(writer.contents[0], work)
    found = []
    for _ in range(times):
        child = start(lambda: forever(writer, work))
        while not (work / "begun").exists():
            os.sched_yield()
        kill_after(child, draw.uniform(0, 0.05))
        (work / "begun").unlink()
        found.append(writer.found(work))
    writer.save(writer.contents[1], work)
    assert writer.found(work) == 1
    return found


@cases(kind=writers.KINDS)
def test_twelve_kills_leave_a_whole_file(kind, tmp_path):
    assert len(survive_kills(kind, tmp_path, 12)) == 12


@pytest.mark.slow
@cases(kind=writers.KINDS)
def test_fifty_kills_leave_a_whole_file(kind, tmp_path):
    found = survive_kills(kind, tmp_path, 50)
    assert len(found) == 50 and set(found) == {0, 1}, "kills before and after the moment of the change"


@cases(kind=writers.KINDS, room=[0, 1, 1000, 20000])
def test_a_disk_that_takes_no_more_leaves_the_old_file(kind, room, tmp_path):
    """By the limit on the size of files, which a process can set for itself."""
    writer = writers.make(kind)
    writer.save(writer.contents[0], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        with pytest.raises(OSError, match="File too large"):
            writer.save(writer.contents[1], tmp_path)

    assert finish(start(work)) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "changed, or left something behind"
    assert writer.found(tmp_path) == 0


@pytest.fixture
def tiny_disk():
    """A file system of 2 MiB; skipped where one cannot be mounted."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@cases(kind=writers.KINDS)
def test_a_full_disk_leaves_the_old_file(kind, tiny_disk):
    writer = writers.make(kind)
    writer.save(writer.contents[0], tiny_disk)
    with open(str(tiny_disk / "filler"), "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"\0" * 4096)
    with pytest.raises(OSError, match="No space"):
        writer.save(writer.contents[1], tiny_disk)
    assert writer.found(tiny_disk) == 0 and not list(tiny_disk.glob(".*tmp*"))
    (tiny_disk / "filler").unlink()
    writer.save(writer.contents[1], tiny_disk)
    assert writer.found(tiny_disk) == 1


@pytest.fixture
def shared_folder():
    """A folder that another user can reach, unlike those that pytest makes."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(str(folder))


@cases(kind=writers.KINDS)
def test_a_folder_that_is_read_only_leaves_the_old_file_and_is_named(kind, shared_folder):
    writer = writers.make(kind)
    writer.save(writer.contents[0], shared_folder)
    if os.geteuid():
        shared_folder.chmod(0o555)

    def work():
        as_nobody()
        with pytest.raises(OSError, match="Permission denied"):
            writer.save(writer.contents[1], shared_folder)

    assert finish(start(work)) == 0
    assert writer.found(shared_folder) == 0
    shared_folder.chmod(0o755)


@cases(stop_at=range(4))
def test_shards_of_two_models_are_never_read_as_one(stop_at, tmp_path, monkeypatch):
    old, new = (small_model("gated_deltanet", seed=seed) for seed in (1, 2))
    old.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX).exists() and len(list(tmp_path.glob("model-*.safetensors"))) > 4
    replace, done = os.replace, []

    def stopping(source, target):
        if Path(target).name.startswith("model-") and len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path, max_shard_size="20KB")
    monkeypatch.undo()
    try:
        got = load_model(tmp_path).state_dict()
    except CheckpointError as problem:
        assert "model.safetensors must be there" in str(problem)
    else:
        wanted = (old.state_dict(), new.state_dict())
        assert any(all(torch.equal(got[name], want[name]) for name in want) for want in wanted)
    new.save_pretrained(tmp_path, max_shard_size="20KB")
    assert torch.equal(load_model(tmp_path).lm_head.weight, new.lm_head.weight)


def test_an_export_that_is_killed_leaves_whole_files_and_the_next_one_clears_up(tmp_path):
    encoder, draw = small_encoder("rwkv7", hidden_size=64), random.Random(7)
    encoder.save(tmp_path / "run")
    config = AppConfig(run=str(tmp_path / "run"), job=ExportJobConfig(format="safetensors"))
    for number in range(12):
        out = tmp_path / str(number)
        out.mkdir()
        child = start(lambda to=out: export(config, to))
        while not list(out.glob(".export-*.tmp")):
            os.sched_yield()
        time.sleep(draw.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        finish(child)
        ended = (out / "export.json").exists()
        names = {path.name for path in out.iterdir() if not path.name.startswith(".export-")}
        assert not ended or names == {"encoder.json", "encoder.safetensors", "export.json", "sample.py"}
        for name in names & {"encoder.json", "export.json"}:
            json.loads((out / name).read_bytes().decode())
        if not ended:
            export(config, out)
        assert torch.equal(load_encoder(out).input.weight, encoder.input.weight)
        assert ended or not list(out.glob(".*")), "the next one removes what a killed one left"

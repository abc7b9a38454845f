"""Two processes train as one does: the same batches, the same loss."""

import csv
import os
import socket
import subprocess
import sys

import pytest
import torch

from app_runs import ROOT, run_app, run_python
from encoders import load_encoder
from myfla.testing import cases, rms_error

#: No randomness but the order of the batches: each process has its own noise. 20 sequences a batch leave unequal
#: shares, and batches by tokens leave some that are smaller than the number of processes.
SETTINGS = ("experiment=quick", "trainer.threads=1", "trainer.max_epochs=2", "encoder.dropout=0", "job.offset=0",
            "job.refit=true", "trainer.progress=false")
BATCHES = {"padded": ("data.batch_size=21", "job.class_weights=balanced"),
           "packed": ("data.batch_tokens=25", "data.packed=true", "job.refit=false")}


def curve(folder):
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ("train_loss", "val_loss", "val_accuracy")
    return [(row["stage"], row["epoch"], *(float(row[name]) for name in names if row[name])) for row in rows]


def assert_same_curve(folder):
    one, two = curve(folder / "one"), curve(folder / "two")
    assert len(one) == len(two) and [row[:2] for row in one] == [row[:2] for row in two]
    for a, b in zip(one, two):
        assert a[2:] == pytest.approx(b[2:], abs=1e-4)


@cases(batches=list(BATCHES))
def test_two_processes_learn_what_one_learns(tmp_path, batches):
    for name, more in (("one", ()), ("two", ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"))):
        done = run_app(tmp_path, *SETTINGS, *BATCHES[batches], *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path)
    states = [load_encoder(tmp_path / name).state_dict() for name in ("one", "two")]
    assert max(rms_error(states[1][key], value) for key, value in states[0].items() if value.any()) < 1e-3
    assert (tmp_path / "two" / "predictions.csv").read_text().count("\n") == 371, "no sequence twice, none lost"


def torchrun(folder, node, port, *arguments):
    """One of two agents that are two machines to torchrun."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}",
               "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "app", *arguments]
    return subprocess.Popen(command, cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_learn_what_one_learns(tmp_path):
    settings = (*SETTINGS, *BATCHES["padded"])
    done = run_app(tmp_path, *settings, "hydra.run.dir=one")
    assert done.returncode == 0, done.stderr
    port = free_port()
    nodes = [torchrun(tmp_path, node, port, *settings, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1",
                      "trainer.num_nodes=2", "hydra.run.dir=two") for node in range(2)]
    said = [node.communicate(timeout=300)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_same_curve(tmp_path)


def run_sharded(folder, *arguments, **more):
    paths = os.pathsep.join(str(ROOT / part) for part in ("src", "libs"))
    return run_python(folder, str(ROOT / "tests" / "support" / "fsdp_on_cpu.py"), *arguments,
                      environment={**os.environ, "PYTHONPATH": paths, "COLUMNS": "120", **more})


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "get_device_module"), reason="this torch has no FSDP on the CPU")
@cases(cut=[2, 3])
def test_a_sharded_run_learns_what_one_process_learns_and_goes_on_when_cut_off(tmp_path, cut):
    settings = (*SETTINGS, *BATCHES["padded"], "callbacks.checkpoint_steps=7")
    sharded = ("trainer=fsdp", "trainer.accelerator=auto", "trainer.devices=2", "trainer.threads=1")
    done = run_app(tmp_path, *settings, "hydra.run.dir=one")
    assert done.returncode == 0, done.stderr
    done = run_sharded(tmp_path, *settings, *sharded, "hydra.run.dir=two", CUT=str(cut))
    assert done.returncode != 0 and (tmp_path / "two" / "checkpoints" / "fit-last.ckpt").exists()
    assert not (tmp_path / "two" / "metrics.json").exists()
    done = run_sharded(tmp_path, "run=two", "resume=true")
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path)
    assert load_encoder(tmp_path / "two").state_dict().keys() == load_encoder(tmp_path / "one").state_dict().keys()


def test_processes_that_would_each_name_a_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    done = run_app(tmp_path, *SETTINGS, "trainer=ddp", "trainer.accelerator=cpu")
    assert done.returncode == 1
    assert "error: hydra.run.dir must be given to 2 processes that something else has started (RANK is set); got " \
        "None; hydra.run.dir=FOLDER, which all of them see" in done.stderr, done.stderr

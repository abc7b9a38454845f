"""Two processes learn what one learns: the same batches, the same loss."""

import csv

import pytest

from app_runs import run_app
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


@cases(batches=list(BATCHES))
def test_two_processes_learn_what_one_learns(tmp_path, batches):
    for name, more in (("one", ()), ("two", ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"))):
        done = run_app(tmp_path, *SETTINGS, *BATCHES[batches], *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) and [row[:2] for row in one] == [row[:2] for row in two]
    for a, b in zip(one, two):
        assert a[2:] == pytest.approx(b[2:], abs=1e-4)
    states = [load_encoder(tmp_path / name).state_dict() for name in ("one", "two")]
    assert max(rms_error(states[1][key], value) for key, value in states[0].items() if value.any()) < 1e-3
    assert (tmp_path / "two" / "predictions.csv").read_text().count("\n") == 371, "no sequence twice, none lost"

"""``job=evaluate``: the figures of a run again, on its own test set and on others, and data that do not fit."""

import dataclasses
import json

import pytest
import torch

from app import inputs
from app.data import load_data
from app.data.japanese_vowels import FILES
from app.errors import DataError, RunError
from app.jobs import run_job
from app_runs import QUICK, compose_app, run_app
from cfg.validation import ConfigError
from encoders import build_encoder
from encoders.training.data.module import loader
from encoders.training.data.prepared import Prepared
from encoders.training.trained import load_trained
from myfla.testing import cases
from runs import untrained

TRAIN, TEST = FILES / "JapaneseVowels_TRAIN.ts", FILES / "JapaneseVowels_TEST.ts"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "trained", "data=ts", f"data.train_path={TRAIN}",
                     f"data.test_path={TEST}")


def judge(tmp_path, run, *overrides, name="out"):
    (tmp_path / name).mkdir()
    value = run_job(compose_app(["job=evaluate", f"run={run}", "trainer.threads=1", *overrides]), tmp_path / name)
    results = json.loads((tmp_path / name / "metrics.json").read_text())
    assert value == results["test_loss"]
    return results


def rename(path, old, new):
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def relabelled(path, names, keep=lambda label: True):
    """The test file with other class names, in another order."""
    lines = []
    for line in TEST.read_text(encoding="utf-8").splitlines():
        if line.lower().startswith("@classlabel"):
            line = "@classLabel true " + " ".join(names.values())
        elif line and not line.startswith(("@", "#", "%")):
            body, _, label = line.rpartition(":")
            if not keep(label):
                continue
            line = f"{body}:{names[label]}"
        lines.append(line)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_trained_run_gets_its_own_figures_again(tmp_path):
    done = run_app(tmp_path, *QUICK, "hydra.run.dir=run", "trainer.progress=false")
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    done = run_app(tmp_path, "job=evaluate", "run=run", "hydra.run.dir=again")
    assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for key in ("test_accuracy", "test_macro_f1", "test_loss"):
        assert again[key] == pytest.approx(trained[key], abs=1e-6), key
    for name in ("predictions.csv", "confusion.png", "embeddings.png", "half_life.png", "memory.json", "report.html"):
        assert (tmp_path / "again" / name).is_file(), name
    assert not (tmp_path / "again" / "loss.png").exists()
    rows = [(tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("run", "again")]
    assert [row.split(",")[:3] for row in rows[0]] == [row.split(",")[:3] for row in rows[1]]
    assert "evaluation of run" in (tmp_path / "again" / "report.html").read_text(encoding="utf-8")


def test_another_file_in_another_order_of_classes_is_judged_by_names(tmp_path, run):
    own = judge(tmp_path, run, name="own")
    order = {str(i): str(i) for i in (5, 3, 9, 1, 2, 4, 6, 7, 8)}
    other = judge(tmp_path, run, f"job.input={relabelled(tmp_path / 'other.ts', order)}", name="other")
    assert other["test_accuracy"] == own["test_accuracy"] and other["data"] == "other.ts"
    assert other["test_loss"] == pytest.approx(own["test_loss"], rel=1e-6)


def test_a_file_with_one_class_is_judged(tmp_path, run):
    path = relabelled(tmp_path / "one.ts", {str(i): str(i) for i in range(1, 10)}, keep=lambda label: label == "3")
    assert judge(tmp_path, run, f"job.input={path}")["test_sequences"] == 88


def test_a_class_that_the_run_does_not_know_is_named(tmp_path, run):
    names = {str(i): str(i) for i in range(1, 9)}
    path = relabelled(tmp_path / "other.ts", {**names, "9": "stranger"})
    with pytest.raises(DataError, match=r"other.ts: classes must be among those of the run, 1, 2, .*; got 'stranger'"):
        judge(tmp_path, run, f"job.input={path}")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_of_another_width_is_refused(tmp_path, run):
    path = tmp_path / "wide.ts"
    path.write_text("@problemName x\n@dimensions 2\n@classLabel true 1 2\n@data\n1,2:3,4:1\n5,6:7,8:2\n")
    with pytest.raises(DataError, match="number of channels must be 12, as the encoder reads; got 2"):
        judge(tmp_path, run, f"job.input={path}")


def test_a_run_on_made_up_data_has_no_files_to_replace(tmp_path):
    run = untrained(tmp_path / "run")
    (tmp_path / "x.ts").write_text("")
    with pytest.raises(ConfigError, match=r"job.input must be left out for a run on data=japanese_vowels, which reads"):
        judge(tmp_path, run, f"job.input={tmp_path / 'x.ts'}")


def test_an_encoder_by_itself_cannot_be_judged(tmp_path):
    build_encoder({"name": "rwkv7", "input_size": 12}).save(tmp_path / "alone")
    with pytest.raises(RunError, match=r"must hold a task .* to be evaluated; got an encoder by itself"):
        judge(tmp_path, tmp_path / "alone")


@pytest.mark.parametrize(("damage", "message"), [
    (lambda run: (run / "encoder.safetensors").unlink(), "must hold an intact encoder"),
    (lambda run: (run / "config.yaml").unlink(), "must hold the config.yaml of a trained run"),
    (lambda run: rename(run / "config.yaml", "batch_size", "size_of_old"),
     "data.size_of_old must be a field of this version.*written by another version"),
    (lambda run: (run / "task.safetensors").write_bytes(b"no"), "must hold an intact encoder"),
])
def test_a_damaged_run_or_one_of_another_version_is_named(tmp_path, damage, message):
    run = untrained(tmp_path / "run")
    damage(run)
    with pytest.raises(RunError, match=message):
        judge(tmp_path, run)
    assert not list((tmp_path / "out").iterdir())


def test_a_run_must_be_named_and_be_there(tmp_path):
    with pytest.raises(ConfigError, match="run must be the folder of a finished run; got None"):
        run_job(compose_app(["job=evaluate"]), tmp_path)
    with pytest.raises(RunError, match=r"nowhere.*, which is not a folder"):
        judge(tmp_path, "nowhere")


def test_other_data_may_be_named_on_the_command_line(tmp_path, run, monkeypatch):
    monkeypatch.setattr(inputs, "overrides", lambda: ["job=evaluate", "data=..."])
    found = judge(tmp_path, run, "data=japanese_vowels", name="other")
    assert found["data"] == "japanese_vowels" and found["test_sequences"] == 370
    with pytest.raises(DataError, match=r"data=.*number of channels must be 12, as the encoder reads; got None"):
        judge(tmp_path, run, "data=parity", name="tokens")
    (tmp_path / "x.ts").write_text("")
    with pytest.raises(ConfigError, match=r"job.input must not be set with other data; got .*x.ts'; or leave out"):
        judge(tmp_path, run, f"job.input={tmp_path / 'x.ts'}", name="both")


@cases(packed=[False, True], batch_tokens=[None, 100])
def test_predictions_keep_the_order_of_the_file_however_they_are_batched(tmp_path, run, packed, batch_tokens):
    """Sequences of like length come together in training only."""
    trained = load_trained(run)
    config = dataclasses.replace(trained.config.data, packed=packed, batch_tokens=batch_tokens)
    data = load_data(config)
    batches = list(loader(Prepared(data.test, trained.pipeline), config, False))
    assert torch.cat([batch.lengths for batch in batches]).tolist() == data.test.lengths
    assert torch.equal(torch.cat([batch.targets for batch in batches]), data.test.targets)
    if batch_tokens is not None:
        assert max(batch.x.shape[0] * batch.x.shape[1] for batch in batches) <= 100 and len(batches) > 50

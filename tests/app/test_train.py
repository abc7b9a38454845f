"""One short training run: what it leaves, that it can be used again, and that it can be repeated."""

import csv
import json
import re
import sys

import pytest
import torch

from app.data import load_data
from app.errors import RunError
from app.preflight import check_start
from app.run_folder import claim
from app_runs import QUICK, ROOT, compose_app, run_app, run_python
from cfg.validation import ConfigError
from encoders import load_encoder
from encoders.io import read_encoder
from encoders.training.data.batches import collate
from encoders.training.data.module import SequenceDataModule
from myfla.models.sealed_file import read_sealed

WRITTEN = ["app.log", "config.yaml", "confusion.png", "embeddings.png", "embeddings.safetensors",
           "encoder.safetensors", "half_life.png", "loss.png", "memory.json", "metrics.csv", "metrics.json",
           "predictions.csv", "rate.png", "report.html", "strength.png", "task.safetensors"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two epochs, from a process of its own."""
    where = tmp_path_factory.mktemp("train")
    done = run_app(where, *QUICK, "job.refit=true", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout and "macro-F1" in done.stdout and "tokens/s" in done.stdout
    assert "metrics.csv" in done.stdout and "run" in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    return where / "run"


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_there(folder):
    found = {path.name for path in folder.iterdir() if path.is_file()}
    assert set(WRITTEN) <= found
    for name in WRITTEN:
        assert not name.endswith(".png") or (folder / name).read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.html").read_text(encoding="utf-8")
    results = json.loads((folder / "metrics.json").read_text())
    assert report.count("<svg") == 6 and f"{results['test_accuracy']:.2%}" in report
    assert "python -m app experiment=quick" in report and "hidden_size: 16" in report
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]


def test_results_agree_with_the_predictions(folder):
    results = json.loads((folder / "metrics.json").read_text())
    rows = rows_of(folder / "predictions.csv")
    assert len(rows) == 370 == results["test_sequences"]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert results["test_accuracy"] == pytest.approx(right / 370, abs=1e-6)
    classes = sorted({row["label"] for row in rows})
    f1 = []
    for name in classes:
        hit = sum(row["label"] == row["predicted"] == name for row in rows)
        f1.append(2 * hit / sum((row["label"] == name) + (row["predicted"] == name) for row in rows))
    assert results["test_macro_f1"] == pytest.approx(sum(f1) / len(f1), abs=1e-5)
    assert results["train_tokens_per_s"] > 0 and results["encode_tokens_per_s"] > 0
    assert results["overrides"][0] == "experiment=quick"


def test_metrics_have_one_row_an_epoch_and_the_best_is_chosen(folder):
    rows = rows_of(folder / "metrics.csv")
    fit = [row for row in rows if row["stage"] == "fit"]
    assert [row["epoch"] for row in fit] == ["1", "2"]
    for row in fit:
        assert all(row[name] for name in ("train_loss", "val_loss", "val_accuracy", "learning_rate", "tokens_per_s"))
    results = json.loads((folder / "metrics.json").read_text())
    best = min(fit, key=lambda row: float(row["val_loss"]))
    assert results["epoch"] == int(best["epoch"]) and results["val_loss"] == pytest.approx(float(best["val_loss"]))
    refit = [row for row in rows if row["stage"] == "refit"]
    assert len(refit) == results["epoch"] and not refit[0]["val_loss"]
    assert results["train_sequences"] == 270 and results["validation_sequences"] == 0


def test_the_encoder_comes_back_with_the_same_embeddings(folder):
    encoder = load_encoder(folder)
    head, facts = read_sealed(folder / "task.safetensors", "myfla.task", ValueError)
    saved, _ = read_sealed(folder / "embeddings.safetensors", "myfla.embeddings", ValueError)
    test = load_data(compose_app().data).test
    embeddings = encoder.encode(list(test.sequences))
    assert torch.equal(embeddings, encoder.encode([sequence.tolist() for sequence in test.sequences]))
    torch.testing.assert_close(embeddings, saved["embeddings"], rtol=1e-4, atol=1e-5)
    logits = embeddings @ head["head.weight"].T + head["head.bias"]
    guesses = [facts["task"]["names"][index] for index in logits.argmax(-1).tolist()]
    assert guesses == [row["predicted"] for row in rows_of(folder / "predictions.csv")]


def test_the_written_config_is_the_config(folder):
    from omegaconf import OmegaConf

    written = OmegaConf.load(folder / "config.yaml")
    assert written.encoder.input_size == 12 and written.encoder.hidden_size == 16
    assert written.trainer.max_epochs == 2 and written.job.refit is True


def test_a_folder_in_use_is_left_alone(folder):
    before = (folder / "metrics.json").read_bytes()
    with pytest.raises(RunError, match=r"hydra.run.dir must be a folder without another run's metrics.json"):
        claim(folder)
    done = run_app(folder.parent, *QUICK, "hydra.run.dir=run")
    assert done.returncode == 1 and "hydra.run.dir must be a folder" in done.stderr
    assert (folder / "metrics.json").read_bytes() == before


def run_here(folder, *overrides):
    from app.jobs.train import run

    folder.mkdir()
    return run(compose_app([*QUICK, "trainer.progress=false", *overrides]), folder)


def test_an_encoder_that_does_not_fit_the_data_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"^encoder.input_size must be 12, the channels of data=japanese.*got 5"):
        run_here(tmp_path / "a", "encoder.input_size=5")
    with pytest.raises(ConfigError, match=r"^encoder.vocab_size must be null for data of 12 real-valued.*got 9"):
        run_here(tmp_path / "b", "encoder.vocab_size=9")
    assert not list((tmp_path / "a").iterdir()) and not list((tmp_path / "b").iterdir())


def test_a_run_that_is_not_gone_on_with_and_devices_that_are_not_there_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"^run must be null with job=train; got 'old'; to resume it, set "
                       r"resume="):
        check_start(compose_app([*QUICK, "run=old"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"^trainer.accelerator=gpu: No GPU found on this machine; use trainer=cpu$"):
        run_here(tmp_path / "b", "trainer=gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RunError, match=r"^trainer.devices must be at most 1, the GPUs that this process sees; got 2"):
        run_here(tmp_path / "c", "trainer=ddp", "trainer.accelerator=gpu")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_training_that_diverges_says_so(tmp_path):
    huge = ("job.learning_rate=10", "job.weight_decay=100", "job.warmup=0")  # weights grow 999 times with each step
    with pytest.raises(RunError, match=r"training diverged: no epoch had a finite val_loss; lower job.learning_rate"):
        run_here(tmp_path / "a", *huge)
    assert not (tmp_path / "a" / "metrics.json").exists()


def test_the_same_seed_gives_the_same_files(tmp_path):
    overrides = ("encoder.dropout=0.2", "job.noise=0.1")
    first = run_here(tmp_path / "a", *overrides)
    assert run_here(tmp_path / "b", *overrides) == first
    for name in ("encoder.safetensors", "task.safetensors", "embeddings.safetensors", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert run_here(tmp_path / "c", *overrides, "seed=1") != first


def test_test_data_never_steer_the_training(tmp_path, monkeypatch):
    from app.jobs import train

    honest = run_here(tmp_path / "honest")
    spoiled = load_data(compose_app().data)
    spoiled.test.sequences = [sequence * 0 for sequence in spoiled.test.sequences]
    monkeypatch.setattr(train, "load_data", lambda config: spoiled)
    assert run_here(tmp_path / "spoiled") == honest
    encoders = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("honest", "spoiled")]
    assert encoders[0] == encoders[1]


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path):
    folder = tmp_path / "run"
    # A learning rate that ruins everything after its warm-up: the best epoch is an early one.
    run_here(folder, "job.patience=2", "trainer.max_epochs=12", "job.learning_rate=1", "job.warmup=0.5",
             "trainer.gradient_clip_val=null", "job.refit=false")
    results = json.loads((folder / "metrics.json").read_text())
    assert results["epochs"] < 12 and results["epoch"] == results["epochs"] - 2
    parts = SequenceDataModule(load_data(compose_app().data), compose_app().data, seed=0)
    held = parts.prepared(parts.validation)
    batch = collate([held[i] for i in range(len(held))])
    head, _ = read_sealed(folder / "task.safetensors", "myfla.task", ValueError)
    with torch.no_grad():
        embeddings = read_encoder(folder)[0](batch.x, lengths=batch.lengths).embedding
    logits = embeddings @ head["head.weight"].T + head["head.bias"]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets)
    assert float(loss) == pytest.approx(results["val_loss"], rel=1e-3)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_a_progress_bar(tmp_path):
    script = (
        "import os, pty, sys\n"
        f"sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT / 'libs')!r}]\n"
        "os.environ.update(PYTHONPATH=os.pathsep.join(sys.path[:2]), TERM='xterm', COLUMNS='100')\n"
        "status = pty.spawn([sys.executable, '-m', 'app', *sys.argv[1:]])\n"
        "sys.exit(status >> 8)\n"
    )
    done = run_python(tmp_path, "-c", script, *QUICK)
    assert done.returncode == 0, done.stdout
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout)
    assert re.search(r"epoch 2/2, batch (\d+)/\1\b", plain)
    assert re.search(r"2 epochs .*tokens/s", plain)


def test_own_ts_files_train_like_the_packaged_ones(tmp_path):
    from app.data.japanese_vowels import FILES

    paths = [f"data.{part}_path={FILES / f'JapaneseVowels_{part.upper()}.ts'}" for part in ("train", "test")]
    assert run_here(tmp_path / "ts", "data=ts", *paths) == run_here(tmp_path / "packaged")

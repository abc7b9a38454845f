"""Every objective on every kind of data trains, is reported and comes back; so do loggers and mixed precision."""

import csv
import json
import sys

import pytest
import torch

from app.data import load_data
from app.errors import RunError
from app.jobs.train import run
from app_runs import compose_app
from cfg.validation import ConfigError
from encoders.training.trained import load_trained

NEXT = "job.objective=next_step"

SHORT = ("encoder.hidden_size=16", "encoder.num_layers=1", "encoder.direction=causal", "trainer.max_epochs=1",
         "trainer.limit_batches=3", "trainer.progress=false", "job.refit=false")


def train(folder, *overrides):
    folder.mkdir()
    loss = run(compose_app([*SHORT, *overrides]), folder)
    return loss, json.loads((folder / "metrics.json").read_text())


def rows_of(folder):
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers_file(path, count=24):
    """A `.ts` file whose target is the mean of its channel, with values missing."""
    draw = torch.Generator().manual_seed(0)
    lines = []
    for i in range(count):
        x = torch.randn(3 + i % 5, generator=draw) + 10 * torch.randn((), generator=draw)
        words = [f"{v:.4f}" for v in x.tolist()]
        words[i % 3] = "?"
        lines.append(",".join(words) + f":{100 + float(x.mean()):.4f}")
    path.write_text("@univariate true\n@targetLabel true\n@data\n" + "\n".join(lines) + "\n")
    return str(path)


def test_numbers_are_learned_and_told_in_their_own_units(tmp_path):
    path = numbers_file(tmp_path / "a.ts")
    _, results = train(tmp_path / "run", "data=ts", f"data.train_path={path}", "data.missing=forward",
                       "job.objective=regress")
    rows = rows_of(tmp_path / "run")
    gaps = [float(row["target"]) - float(row["predicted target"]) for row in rows]
    assert results["test_rmse"] == pytest.approx((sum(g * g for g in gaps) / len(gaps)) ** 0.5, rel=1e-4)
    assert 80 < float(rows[0]["predicted target"]) < 120 and "test_r2" in results
    trained = load_trained(tmp_path / "run")
    assert trained.task.spec.kind == "values" and trained.pipeline.missing == "forward"
    assert trained.config.job.objective == "regress"


def test_the_next_features_are_learned(tmp_path):
    _, results = train(tmp_path / "run", "job.objective=next_step", "data.batch_tokens=200")
    data = load_data(compose_app().data)
    assert len(rows_of(tmp_path / "run")) == data.test.tokens - len(data.test), "every step but the last has a target"
    assert results["test_rmse"] > 0 and load_trained(tmp_path / "run").task.spec.outputs == 12


def test_the_next_bytes_are_learned(tmp_path):
    (tmp_path / "a.txt").write_text("the quick brown fox " * 200)
    _, results = train(tmp_path / "run", "data=text", f"data.train_path={tmp_path / 'a.txt'}", "data.window=32",
                       "job.objective=next_step")
    assert 1 < results["test_perplexity"] < 256
    trained = load_trained(tmp_path / "run")
    assert trained.pipeline.schema is None and trained.encoder.config.vocab_size == 256


def test_padded_or_packed_the_same_is_learned(tmp_path):
    settings = ("job.offset=0", "encoder.dropout=0", "trainer.limit_batches=6")
    padded, packed = (train(tmp_path / name, *settings, f"data.packed={name}") for name in ("false", "true"))
    assert packed[0] == pytest.approx(padded[0], abs=1e-4)
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert packed[1][name] == pytest.approx(padded[1][name], abs=1e-4)


def test_mixed_precision_trains_and_leaves_full_precision(tmp_path):
    full = train(tmp_path / "full")[0]
    half = train(tmp_path / "half", "trainer.precision=bf16-mixed")[0]
    assert half != full and half == pytest.approx(full, rel=0.05)
    assert load_trained(tmp_path / "half").encoder.input.weight.dtype == torch.float32
    train(tmp_path / "double", "trainer.precision=64-true")
    assert load_trained(tmp_path / "double").encoder.input.weight.dtype == torch.float64


def test_figures_go_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", "logger=tensorboard")
    assert list((tmp_path / "run" / "tensorboard" / "fit").glob("events.*"))
    assert (tmp_path / "run" / "metrics.csv").exists()


def test_figures_go_to_wandb_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    train(tmp_path / "run", "logger=wandb", "logger.offline=true", "job.refit=true")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2, "one for each stage"
    written = b"".join(path.read_bytes() for path in files)
    assert b"val_loss" in written and b"learning_rate" in written and b"hidden_size" in written


def test_figures_go_to_mlflow_without_a_server(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    train(tmp_path / "run", "logger=mlflow", "logger.experiment=mine", "job.refit=true")
    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["run fit", "run refit"]
    (first,) = [run for run in runs if run.info.run_name == "run fit"]
    assert "val_loss" in first.data.metrics and first.data.params["encoder/hidden_size"] == "16"
    assert first.info.status == "FINISHED"


def test_a_logger_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("encoders.training.loop.loggers._wandb", lambda *args: __import__("wandb"))
    with pytest.raises(RunError, match=r"logger=wandb needs the package 'wandb'.*pip install 'myfla\[wandb\]'"):
        train(tmp_path / "run", "logger=wandb")


@pytest.mark.parametrize(("overrides", "reason"), [
    ([NEXT, "encoder.direction=bidirectional"], "encoder.direction must be causal with job.objec"),
    ([NEXT, "encoder.state_weaving=true"], "encoder.state_weaving must be false with job.objective"),
    ([NEXT, "encoder.stem=patch", "encoder.stem_stride=2"], "encoder.stem must be none where each"),
    (["job.objective=regress"], "job.objective must be classify for targets that are not numbers"),
    (["data=parity", "encoder.input_size=3"], "encoder.input_size must be null for the tokens of data=synthetic"),
    (["data=parity", "encoder.vocab_size=5"], "encoder.vocab_size must be 2, the token ids of data=synthetic"),
    (["job.test_pieces=4", "encoder.direction=bidirectional"], "job.test_pieces must be null with an encoder"),
    (["job.test_pieces=4", "data.packed=true"], "job.test_pieces must be null with data.packed=true; got 4"),
])
def test_what_does_not_fit_together_is_refused_before_training(tmp_path, overrides, reason):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path / "run", *overrides)
    assert str(caught.value).startswith(reason) and not list((tmp_path / "run").iterdir())

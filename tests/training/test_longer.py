"""Trials, accumulated gradients, schedules, and trainings that are made longer."""

import csv
import json

import pytest
import torch

from app.jobs import run_job
from app.reopening import _with
from app.run_folder import CHECKPOINTS
from app_runs import QUICK, compose_app, run_app
from cfg.validation import ConfigError
from encoders.training.trained import load_trained
from myfla.testing import cases

PLAIN = ("job.offset=0", "encoder.dropout=0", "job.label_smoothing=0", "job.baselines=false", "job.refit=false",
         "trainer.progress=false")


def train(folder, *overrides):
    folder.mkdir(exist_ok=True)
    run_job(compose_app([*QUICK, *overrides]), folder)
    with open(folder / "metrics.csv", newline="") as file:
        return json.loads((folder / "metrics.json").read_text()), list(csv.DictReader(file))


def weights(folder):
    return load_trained(folder).encoder.state_dict()


def test_a_batch_in_parts_gives_the_step_of_the_whole(tmp_path):
    """54 batches of 4 are 13 of 16 and a rest of 8, which has its own step too."""
    whole = train(tmp_path / "whole", *PLAIN, "trainer.max_epochs=1", "data.batch_size=16")[0]
    parts = train(tmp_path / "parts", *PLAIN, "trainer.max_epochs=1", "data.batch_size=4",
                  "trainer.accumulate_grad_batches=4")[0]
    assert parts["val_loss"] == pytest.approx(whole["val_loss"], abs=2e-3)
    other = train(tmp_path / "other", *PLAIN, "trainer.max_epochs=1", "data.batch_size=4")[0]
    assert abs(other["val_loss"] - whole["val_loss"]) > 0.02, "four times the steps are another training"
    longest = max(float((weights(tmp_path / "whole")[key] - value).abs().max())
                  for key, value in weights(tmp_path / "parts").items())
    assert longest < 1e-2


@cases(schedule=["cosine", "linear", "constant"])
def test_the_schedule_is_the_one_chosen(schedule, tmp_path):
    rows = train(tmp_path / "run", *PLAIN, "trainer.max_epochs=4", "trainer.limit_batches=5", "job.warmup=0",
                 f"job.schedule={schedule}", "job.learning_rate=1e-3")[1]
    rates = [float(row["learning_rate"]) for row in rows]
    if schedule == "constant":
        assert rates == pytest.approx([1e-3] * 4)
    elif schedule == "linear":
        assert rates == pytest.approx([7.5e-4, 5e-4, 2.5e-4, 0])
    else:
        assert rates[1] == pytest.approx(5e-4) and rates[0] > 7.5e-4 and rates[2] < 2.5e-4


def test_trials_are_short_or_learn_by_heart(tmp_path):
    trial = compose_app(["trainer=debug"]).trainer
    assert (trial.max_epochs, trial.limit_batches, trial.detect_anomaly) == (1, 3, True)
    _, rows = train(tmp_path / "debug", *PLAIN, "trainer=debug", "trainer.max_epochs=1")
    assert len(rows) == 1
    found, rows = train(tmp_path / "overfit", "trainer=overfit", "trainer.max_epochs=40", "job.learning_rate=1e-2",
                        "job.baselines=false")
    assert found["train_sequences"] == 32 and float(rows[-1]["train_loss"]) < 0.05 < float(rows[0]["train_loss"])
    assert found["val_accuracy"] == 1.0, "it is validated on the same sequences"


def command(tmp_path, *arguments):
    return run_app(tmp_path, *QUICK, *PLAIN, "job.schedule=constant", "job.warmup=0", *arguments)


def test_a_run_that_has_ended_is_trained_for_longer(tmp_path):
    """With a constant rate, two epochs and then two more are four, bit for bit."""
    four = command(tmp_path, "trainer.max_epochs=4", "hydra.run.dir=four")
    two = command(tmp_path, "trainer.max_epochs=2", "hydra.run.dir=two")
    assert four.returncode == two.returncode == 0, four.stderr + two.stderr
    refused = run_app(tmp_path, "run=two", "resume=true")
    assert refused.returncode and "to train it for longer, give trainer.max_epochs=N as well" in refused.stderr
    fewer = run_app(tmp_path, "run=two", "resume=true", "trainer.max_epochs=1")
    assert fewer.returncode and "trainer.max_epochs must be at least 2, as many as the run has" in fewer.stderr
    other = run_app(tmp_path, "run=two", "resume=true", "seed=3")
    assert other.returncode and "to train for longer, give trainer.max_epochs or job.patience" in other.stderr
    more = run_app(tmp_path, "run=two", "resume=true", "trainer.max_epochs=4")
    assert more.returncode == 0, more.stderr
    first, second = weights(tmp_path / "four"), weights(tmp_path / "two")
    assert all(torch.equal(first[key], second[key]) for key in first)
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("four", "two"))
    assert one["epochs"] == other["epochs"] == 4 and one["test_loss"] == other["test_loss"]
    assert "max_epochs: 4" in (tmp_path / "two" / "config.yaml").read_text()
    assert (tmp_path / "two" / CHECKPOINTS).is_dir()


@cases(override=["trainer.accumulate_grad_batches=0", "trainer.overfit_batches=0", "job.schedule=step"])
def test_every_rule_names_its_key(override):
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        compose_app([override])


def test_a_run_whose_length_is_no_number_of_epochs_is_left_as_it_is():
    config = compose_app([])
    assert _with(config, {}, None) is config
    assert _with(config, {"job.patience": 30}, None).job.patience == 30
    with pytest.raises(ConfigError, match=r"trainer.max_epochs must be left out for a run whose length is no number"):
        _with(config, {"trainer.max_epochs": 30}, None)

"""Callbacks by config: what each switch changes."""

import csv
import json

import pytest
import torch

from app.jobs import run_job
from app_runs import QUICK, compose_app
from cfg.validation import ConfigError
from encoders import load_encoder

#: A learning rate that rises until it ruins everything: the best epoch is an early one.
RUINED = ("trainer.max_epochs=5", "job.patience=1", "job.learning_rate=3", "job.warmup=1",
          "trainer.gradient_clip_val=null", "job.refit=false", "trainer.progress=false")


def train(folder, *overrides):
    folder.mkdir()
    run_job(compose_app([*QUICK, *RUINED, *overrides]), folder)
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return json.loads((folder / "metrics.json").read_text()), list(csv.DictReader(file))


def test_early_stopping_and_the_best_weights_can_be_left_out(tmp_path):
    stopped, rows = train(tmp_path / "default")
    assert len(rows) < 5 and stopped["epoch"] < len(rows)
    found, rows = train(tmp_path / "all", "callbacks.early_stopping=false")
    assert len(rows) == 5 and found["epoch"] == stopped["epoch"]
    last, rows = train(tmp_path / "last", "callbacks=all_epochs")
    assert len(rows) == 5 == last["epoch"] and last["val_loss"] == float(rows[-1]["val_loss"]) > found["val_loss"]
    states = [load_encoder(tmp_path / name).state_dict() for name in ("default", "all", "last")]
    assert all((states[0][key] == states[1][key]).all() for key in states[0])
    assert any((states[0][key] != states[2][key]).any() for key in states[0])


def test_a_loss_must_be_better_by_min_delta(tmp_path):
    patient = ("job.learning_rate=1e-3", "job.patience=2")
    assert len(train(tmp_path / "any", *patient)[1]) == 5
    assert len(train(tmp_path / "much", *patient, "callbacks.min_delta=1000")[1]) == 3


def test_the_logger_gets_the_learning_rate_of_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", "trainer.max_epochs=1", "logger=tensorboard", "callbacks.learning_rate_monitor=true")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "fit"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("lr-AdamW")]
    assert names and "train_loss" in events.Tags()["scalars"]


@pytest.mark.parametrize(("override", "message"), [
    ("callbacks.checkpoint_steps=0", "callbacks.checkpoint_steps must be an integer from 1"),
    ("callbacks.min_delta=-1", "callbacks.min_delta must be a finite number from 0"),
    ("callbacks.learning_rate_monitor=true", "callbacks.learning_rate_monitor must be false with logger=csv"),
])
def test_every_rule_names_its_key(override, message):
    with pytest.raises(ConfigError) as caught:
        compose_app([override])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("bound", [0.05, None])
def test_no_step_follows_a_gradient_longer_than_the_bound(bound, tmp_path, monkeypatch):
    lengths, step = [], torch.optim.AdamW.step

    def watched(optimizer, closure=None):
        def gradients():
            loss = closure()
            found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            lengths.append(float(torch.cat([x.flatten() for x in found]).norm()))
            return loss

        return step(optimizer, gradients)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    clip = "null" if bound is None else bound
    train(tmp_path / "run", "trainer.max_epochs=1", "job.learning_rate=1e-3", f"trainer.gradient_clip_val={clip}")
    assert lengths
    if bound is None:
        assert max(lengths) > 0.05
    else:
        assert max(lengths) <= bound * (1 + 1e-5) and max(lengths) > 0.9 * bound

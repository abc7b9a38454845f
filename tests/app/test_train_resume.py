"""An interrupted run continues, and ends with the same files as an uninterrupted one."""

import csv
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from app.errors import RunError
from app.jobs.train import run
from app_runs import ROOT, compose_app, run_app
from cfg.validation import ConfigError
from children import finish, needs_fork, start
from myfla.testing import cases

#: Everything that is drawn at random is on, so that a state that is not brought back shows.
SETTINGS = ("experiment=quick", "trainer.threads=1", "trainer.max_epochs=4", "encoder.dropout=0.2", "job.noise=0.1",
            "job.refit=true", "data.batch_size=32")
FILES = ("encoder.safetensors", "encoder.json", "task.safetensors", "embeddings.safetensors", "predictions.csv")


class Cut(BaseException):
    """Ends a training as a kill does: nobody catches it, nothing is tidied up."""


def train(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return run(compose_app([*SETTINGS, "trainer.progress=false", *overrides]), folder)


def go_on(folder):
    return run(compose_app([f"run={folder}", "resume=true"]), folder)


def curve(folder):
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_s"} for row in csv.DictReader(file)]


def figures(folder):
    found = json.loads((folder / "metrics.json").read_text())
    timings = ("seconds", "_per_s")
    return {key: value for key, value in found.items() if not key.endswith(timings)}


def assert_equal(got, want):
    for name in FILES:
        assert (got / name).read_bytes() == (want / name).read_bytes(), name
    assert curve(got) == curve(want)
    assert {**figures(got), "overrides": 0} == {**figures(want), "overrides": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def cut_at(monkeypatch, name, number):
    """Cut the run off at the ``number``-th call of a function: ``before`` it does anything."""
    from app.jobs import train as job
    from encoders.training import run as training
    from encoders.training.loop.resume import WholeCheckpoint

    owner, attribute = {"epoch": (WholeCheckpoint, "on_train_epoch_end"),
                        "step": (WholeCheckpoint, "on_train_batch_end"),
                        "refit": (training, "_refit"), "results": (job, "write_results")}[name]
    calls, original = [], getattr(owner, attribute)

    def cut(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise Cut
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, cut)


@cases(place=[("epoch", 1), ("epoch", 2), ("epoch", 4), ("refit", 1), ("epoch", 6), ("results", 1)])
def test_wherever_it_is_cut_off_the_run_ends_the_same(tmp_path, whole, monkeypatch, place):
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, *place)
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    go_on(tmp_path / "run")
    assert_equal(tmp_path / "run", whole)


#: Seven steps an epoch, nine in the refit; where it was cut off, and the steps that it had written down.
EVERY_THREE = ("callbacks.checkpoint_steps=3",)


@cases(step=[4, 7, 9, 13, 33])
def test_a_run_cut_off_inside_an_epoch_ends_the_same(tmp_path, whole, monkeypatch, step):
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, "step", step)
        train(tmp_path / "run", *EVERY_THREE)
    done = []
    with monkeypatch.context() as patch:
        from encoders.training.loop.resume import RandomState

        step_start = RandomState.on_train_batch_start
        patch.setattr(RandomState, "on_train_batch_start", lambda self, trainer, module, batch, i: (
            done.append(i), step_start(self, trainer, module, batch, i)))
        go_on(tmp_path / "run")
    assert done[0] == {4: 3, 7: 6, 9: 0, 13: 3, 33: 3}[step], "it began where the checkpoint was"
    assert_equal(tmp_path / "run", whole)


def test_a_run_cut_off_again_and_again_ends_the_same(tmp_path, whole, monkeypatch):
    for place in (("step", 6), ("step", 3), ("epoch", 1), ("step", 4), ("epoch", 2), ("step", 10)):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_at(patch, *place)
            if (tmp_path / "run").exists():
                go_on(tmp_path / "run")
            else:
                train(tmp_path / "run", *EVERY_THREE)
    go_on(tmp_path / "run")
    assert_equal(tmp_path / "run", whole)


def test_early_stopping_is_not_granted_one_more_epoch(tmp_path, monkeypatch):
    # The learning rate ruins everything after the first epochs; the cut comes when early stopping has decided.
    bad = ("job.patience=1", "trainer.max_epochs=30", "job.learning_rate=1", "trainer.gradient_clip_val=null",
           "job.refit=false")
    train(tmp_path / "whole", *bad)
    epochs = len(curve(tmp_path / "whole"))
    assert epochs < 30
    from lightning import Trainer

    with monkeypatch.context() as patch, pytest.raises(Cut):
        fit = Trainer.fit

        def cut(*args, **kwargs):
            fit(*args, **kwargs)
            raise Cut

        patch.setattr(Trainer, "fit", cut)
        train(tmp_path / "run", *bad)
    go_on(tmp_path / "run")
    assert_equal(tmp_path / "run", tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@cases(stage=["fit", "refit"])
def test_a_killed_process_goes_on_from_the_command_line(tmp_path, whole, stage):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])}
    command = [sys.executable, "-m", "app", *SETTINGS, "hydra.run.dir=run"]
    process = subprocess.Popen(command, cwd=str(tmp_path), env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    table, end = tmp_path / "run" / "metrics.csv", time.monotonic() + 120
    while not (table.exists() and table.read_text().count(f"\n{stage},") >= 2):
        assert process.poll() is None and time.monotonic() < end, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "metrics.json").exists()
    done = run_app(tmp_path, "run=run", "resume=true")
    assert done.returncode == 0, done.stderr
    assert_equal(tmp_path / "run", whole)
    assert figures(tmp_path / "run")["overrides"] == list(SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}, "it goes on in its own folder"
    again = run_app(tmp_path, "run=run", "resume=true")
    assert again.returncode == 1 and "must be an interrupted run; this one has ended, with metrics.json" in again.stderr


def begin_or_go_on(folder, *overrides):
    if (folder / "checkpoints" / "start.json").exists():
        go_on(folder)
    else:  # it was killed before there was anything to go on with
        train(folder, *overrides)


@pytest.mark.slow
@needs_fork
@cases(encoder=[("encoder=gated_deltanet",), ("encoder=rwkv7", "encoder.direction=bidirectional"),
                ("encoder=gru", "encoder.stem=conv", "encoder.stem_stride=2", "encoder.pooling=attention")])
def test_kills_at_random_moments_change_nothing(tmp_path, encoder):
    """Runs are killed and gone on with, again and again, until they end; 20 kills in all."""
    begin = time.monotonic()
    train(tmp_path / "whole", *encoder)
    seconds, draw, kills, runs = time.monotonic() - begin, random.Random(3), 0, 0
    while kills < 20:
        folder, ended = tmp_path / f"run{runs}", False
        while not ended:
            child = start(functools.partial(begin_or_go_on, folder, *encoder))
            time.sleep(draw.uniform(0, 0.6 * seconds))  # the first run also imports; resumed ones are shorter
            os.kill(child, signal.SIGKILL)
            code = finish(child)
            ended, kills = (folder / "metrics.json").exists(), kills + (code == -signal.SIGKILL)
            assert code in (0, -signal.SIGKILL), "see the traceback of the child"
        runs += 1
        assert_equal(folder, tmp_path / "whole")
    print(f"{kills} kills in {runs} runs")


@pytest.mark.slow
@needs_fork
@cases(number=[signal.SIGTERM, signal.SIGINT], part=[0.3, 0.6])
def test_whoever_asks_it_to_stop_finds_a_run_to_go_on_with(tmp_path, whole, number, part):
    """A scheduler's SIGTERM and Ctrl-C, early and late in the training; the half-trained encoder is never a result."""
    begin = time.monotonic()
    train(tmp_path / "timed")
    seconds = time.monotonic() - begin
    child = start(lambda: train(tmp_path / "run"))
    time.sleep(part * seconds)
    os.kill(child, number)
    assert finish(child) != 0 and not (tmp_path / "run" / "metrics.json").exists()
    begin_or_go_on(tmp_path / "run")
    assert_equal(tmp_path / "run", whole)


def test_what_cannot_be_gone_on_with_is_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, "epoch", 2)
        train(tmp_path / "run")
    with pytest.raises(RunError, match=r"^run must be the folder of a finished run; got .*nowhere', which is not "
                       r"a folder"):
        go_on(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"^run must be the folder of the run to resume, for resume=true"):
        compose_app(["resume=true"])
    checkpoint = tmp_path / "run" / "checkpoints" / "fit-last.ckpt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-3])
    with pytest.raises(RunError, match=r"must hold intact checkpoints; .*fit-last.ckpt.*train again"):
        go_on(tmp_path / "run")
    checkpoint.write_bytes(content)
    start = tmp_path / "run" / "checkpoints" / "start.json"
    text = start.read_text()
    start.write_text(text.replace("270", "271"))
    with pytest.raises(RunError, match=r"must be resumed on the same data; got .*270.* before .*271"):
        go_on(tmp_path / "run")
    for damaged, words in ((text[:-9], "must be a readable file of JSON"), ("[1]", "must hold one JSON object; got li"),
                           ("{}", "must hold 'data', 'overrides' and 'config'; got nothing; train again")):
        start.write_text(damaged)
        with pytest.raises(RunError, match=f"start.json {words}"):
            go_on(tmp_path / "run")
    start.unlink()
    with pytest.raises(RunError, match=r"must be a run that has begun to train; it has no checkpoints/start.json"):
        go_on(tmp_path / "run")


def test_settings_beside_the_run_are_refused(tmp_path):
    done = run_app(tmp_path, "run=run", "resume=true", "seed=3")
    assert done.returncode == 1 and "seed must be left out with resume=true; got 'seed=3'" in done.stderr
    done = run_app(tmp_path, "run=run", "resume=true", "job=export")
    assert done.returncode == 1 and "resume must be false with job=export" in done.stderr

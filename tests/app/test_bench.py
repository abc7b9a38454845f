"""``job=bench``: samples, peak memory of a separate process, and what the job writes."""

import json
import sys

import pytest
import torch

from app.bench import timing as timing_module
from app.bench.memory import peak_bytes
from app.bench.timing import time_in_turn
from app.bench.works import Place, Work, make_work
from app.devices import find_device
from app.errors import RunError
from app.jobs import bench, run_job
from app_runs import compose_app
from cfg.validation import ConfigError
from myfla.testing import cases

ENCODER = {"name": "gated_deltanet", "input_size": 3, "hidden_size": 16, "num_layers": 1}
HERE = Place("cpu", "32-true")


class Clock:
    """A clock that only moves when a call says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing_module.time, "perf_counter", lambda: self.now)

    def call(self, log, name, *seconds):
        pending = list(seconds)

        def run():
            log.append(name)
            self.now += pending.pop(0) if len(pending) > 1 else pending[0]

        return run


def test_samples_are_taken_in_turn_after_two_runs_that_do_not_count(monkeypatch):
    clock, log = Clock(monkeypatch), []
    found = time_in_turn({"a": clock.call(log, "a", 9.0, 9.0, 1.0, 5.0, 2.0, 3.0, 4.0),
                          "b": clock.call(log, "b", 7.0, 7.0, 0.5)}, 5)
    assert log == ["a", "a", "b", "b"] + ["a", "b"] * 5
    assert found["a"] == (3.0, 2.0, 4.0, 5, 1), "median and quartiles of 1, 5, 2, 3, 4"
    assert found["b"].median == 0.5


def test_quick_calls_are_repeated_within_a_sample(monkeypatch):
    clock, log = Clock(monkeypatch), []
    found = time_in_turn({"quick": clock.call(log, "quick", 2.0 ** -10)}, 3)
    repeat = found["quick"].repeat
    assert repeat == 21 and repeat * 2.0 ** -10 >= timing_module.SHORTEST and len(log) == 2 + 3 * repeat
    assert found["quick"].median == 2.0 ** -10


@cases(name=["gated_deltanet", "rwkv7"], precision=["32-true", "bf16-mixed"])
def test_decoding_goes_on_from_the_state(name, precision, monkeypatch):
    place = Place("cpu", precision)
    encoder = place.build({**ENCODER, "name": name})
    lengths = []
    forward = type(encoder).forward

    def watch(self, *args, cache=None, **more):
        out = forward(self, *args, cache=cache, **more)
        lengths.append((None if cache is None else cache.get_seq_length(), out.cache.get_seq_length()))
        return out

    monkeypatch.setattr(type(encoder), "forward", watch)
    call = make_work(Work("decode", 2, 1), encoder, place)
    for _ in range(3):
        call()
    assert lengths == [(None, 1), (1, 2), (2, 3)]


@cases(name=["gated_deltanet", "rwkv7"])
def test_a_training_step_moves_the_weights_and_prefill_does_not(name):
    encoder = HERE.build({**ENCODER, "name": name})
    before = [p.clone() for p in encoder.parameters()]
    make_work(Work("prefill", 2, 5), encoder, HERE)()
    assert all(torch.equal(p, old) for p, old in zip(encoder.parameters(), before))
    make_work(Work("train", 2, 5), encoder, HERE)()
    assert not torch.equal(encoder.input.weight, before[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark can be set back on Linux only")
def test_memory_grows_with_the_work_and_holds_at_least_what_training_keeps():
    small, large = (peak_bytes(Work("train", 8, length), ENCODER, HERE, 1) for length in (64, 1024))
    kept = 8 * 1024 * 16 * 4  # one hidden tensor; a training step keeps many
    assert large > 4 * kept and large > 4 * small


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="encoder 'acme' is not known"):
        peak_bytes(Work("prefill", 1, 4), {**ENCODER, "name": "acme"}, HERE, 1)


def test_the_job_writes_a_table_and_figures(tmp_path, capsys):
    config = compose_app(["job=bench", "encoder.direction=causal", "encoder.hidden_size=16", "encoder.num_layers=1",
                          "job.lengths=[16]", "job.sessions=[3]", "job.batch=2", "job.rounds=3", "trainer.threads=1"])
    value = run_job(config, tmp_path)
    facts = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["kind"], row["batch"], row["length"]) for row in facts["works"]] == [
        ("prefill", 2, 16), ("train", 2, 16), ("decode", 3, 1)]
    for row in facts["works"]:
        seconds = row["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"] and seconds["samples"] == 3
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * row["length"] / seconds["median"])
        assert row["peak_bytes"] >= 0
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["seconds_per_token"] == value == pytest.approx(facts["works"][0]["seconds"]["median"] / 32)
    assert facts["machine"]["threads"] == 1 and facts["encoder"]["input_size"] == 12
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "decode" in shown and "bench.json" in shown


def test_whole_sequence_encoders_have_no_decoding(tmp_path, capsys):
    works = bench.works(compose_app(["job=bench", "job.lengths=[4, 5]"]).job, streams=False)
    assert [work.kind for work in works] == ["prefill", "prefill", "train", "train"]


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"^trainer.accelerator=gpu: No GPU found on this machine; use trainer=cpu$"):
        find_device("gpu")


@pytest.mark.parametrize(("override", "message"), [
    ("job.batch=0", "job.batch must be an integer from 1"),
    ("job.lengths=[]", "job.lengths must be a list of different integers from 1; got []"),
    ("job.lengths=[8, 8]", "job.lengths must be a list of different integers from 1; got [8, 8]"),
    ("job.sessions=[0]", "job.sessions must be a list of different integers from 1; got [0]"),
    ("job.rounds=2", "job.rounds must be an integer from 3"),
])
def test_every_rule_names_its_key(override, message):
    with pytest.raises(ConfigError) as caught:
        compose_app(["job=bench", override])
    assert str(caught.value).startswith(message)

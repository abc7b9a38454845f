"""Thresholds that the runs of a sweep must meet."""

import json

import pytest

from app.checks import judge
from app_runs import QUICK, run_app
from cfg.check import CheckConfig
from cfg.validation import ConfigError
from myfla.testing import cases, raises

ROWS = [
    {"overrides": ["encoder.use_gate=true", "seed=0"], "acc": 1.0, "loss": 0.1},
    {"overrides": ["encoder.use_gate=True", "seed=1"], "acc": 0.8, "loss": 0.3},
    {"overrides": ["encoder.use_gate=false", "seed=0"], "acc": 0.5},
    {"overrides": ["encoder.use_gate=false", "seed=1"], "error": "ValueError: no"},
    {"overrides": ["encoder.state_size=null", "seed=7"], "acc": float("nan")},
]
GATED, NO_GATE = {"encoder.use_gate": True}, {"encoder.use_gate": False}


@cases(case=[
    (dict(metric="acc", where=GATED, at_least=0.9), 0.9, True),
    (dict(metric="acc", where=GATED, at_least=0.9, of="each"), 0.8, False),
    (dict(metric="acc", where=GATED, at_most=0.9), 0.9, True),
    (dict(metric="acc", where=GATED, at_most=0.9, of="each"), 1.0, False),
    (dict(metric="acc", where=GATED, at_least=0.8, at_most=1.0, of="each"), 0.8, True),
    (dict(metric="acc", where=GATED, at_least=0.7, at_most=0.9, of="each"), 1.0, False),
    (dict(metric="acc", where={**NO_GATE, "seed": 0}, at_most=0.6), 0.5, True),
])
def test_a_bar_is_met_or_missed(case):
    check, value, passed = case
    [verdict] = judge([CheckConfig(**check)], ROWS)
    assert (verdict.passed, verdict.reason) == (passed, "") and verdict.value == pytest.approx(value)


@cases(case=[
    (dict(metric="acc", where=NO_GATE, at_least=0.0), "1 of 2 runs failed"),
    (dict(metric="acc", where={"seed": 9}, at_least=0.0), "no run has these settings"),
    (dict(metric="acuracy", where=GATED, at_least=0.0), "2 of 2 runs have no figure 'acuracy'"),
    (dict(metric="loss", where={"seed": 0}, at_most=9.0), "1 of 2 runs have no figure 'loss'"),
])
def test_without_every_figure_nothing_passes(case):
    check, reason = case
    [verdict] = judge([CheckConfig(**check)], ROWS)
    assert not verdict.passed and verdict.value is None and verdict.reason == reason


def test_a_figure_that_is_no_number_passes_nothing():
    where = {"encoder.state_size": None}
    assert not judge([CheckConfig(metric="acc", where=where, at_least=0.0, of="each")], ROWS)[0].passed
    assert not judge([CheckConfig(metric="acc", where=where, at_most=1.0)], ROWS)[0].passed


@cases(case=[
    (dict(at_least=1.0), "checks.metric must be a non-empty string; got '???'"),
    (dict(metric="acc"), "checks.at_least must be set, or checks.at_most; got None; a check needs a bar"),
    (dict(metric="acc", at_least=float("nan")), "checks.at_least must be a finite number"),
    (dict(metric="acc", at_most="x"), "checks.at_most must be a finite number"),
    (dict(metric="acc", at_most=1, of="some"), "checks.of must be one of mean, each; got 'some'"),
])
def test_a_check_that_says_nothing_is_refused(case):
    fields, message = case
    with raises(ConfigError, message):
        CheckConfig(**fields)


def test_a_sweep_ends_with_its_verdicts_and_a_missed_bar_sets_the_exit_code(tmp_path):
    checks = "checks=[{metric:val_loss,at_least:0,of:each},{metric:test_accuracy,at_least:1.5,where:{seed:1}}]"
    done = run_app(tmp_path, "-m", *QUICK, "trainer.progress=false", "seed=0,1", "hydra.sweep.dir=all", checks)
    assert done.returncode == 1, done.stderr
    assert "passed: val_loss of each run >= 0: " in done.stdout and " of 2 runs\n" in done.stdout
    assert "MISSED: test_accuracy of the mean with seed=1 >= 1.5: " in done.stdout
    written = json.loads((tmp_path / "all" / "checks.json").read_text())["checks"]
    assert [(row["runs"], row["passed"]) for row in written] == [(2, True), (1, False)]

"""Strategies that the running program registers itself."""

import os

import pytest
import torch

from app_runs import ROOT, run_python
from encoders import (
    UnknownEncoderError,
    available_strategies,
    build_encoder,
    factory,
    get_strategy,
    load_encoder,
    register_strategy,
)
from encoders.factory import default_registry
from myfla.testing import raises
from myfla.utils.errors import CheckpointError
from tiny_encoder import TinyConfig, TinyStrategy

SCRIPT = """
import sys
from encoders import register_strategy
from tiny_encoder import TinyStrategy
register_strategy(TinyStrategy)
from app.main import main
main()
"""


@pytest.fixture
def alone(monkeypatch):
    """Nothing registered, before and after."""
    monkeypatch.setattr(factory, "_registered", {})
    default_registry(refresh=True)
    yield
    factory._registered.clear()
    default_registry(refresh=True)


def test_what_it_saved_loads_where_it_is_registered(alone, tmp_path):
    with pytest.raises(UnknownEncoderError):
        build_encoder({"name": "tiny", "input_size": 3})
    assert register_strategy(TinyStrategy) is TinyStrategy
    encoder = build_encoder({"name": "tiny", "input_size": 3, "scale": 0.25}).eval()
    encoder.save(tmp_path)
    again = default_registry(refresh=True) and load_encoder(tmp_path)
    x = torch.randn(2, 5, 3)
    assert again.config == encoder.config and torch.equal(again(x).hidden, encoder(x).hidden)
    (row,) = [row for row in available_strategies() if row.name == "tiny"]
    assert (row.state, row.distribution, row.version) == ("ready", "register_strategy", "tiny_encoder:TinyStrategy")
    factory._registered.clear()
    default_registry(refresh=True)
    with raises(CheckpointError, "register it first, as the program that saved it did: "
                "encoders.register_strategy(TinyStrategy), of tiny_encoder"):
        load_encoder(tmp_path)


def test_a_cell_that_runs_again_replaces_its_class(alone):
    for _ in range(2):
        made = register_strategy(type("TinyStrategy", (TinyStrategy,), {}))
        assert type(get_strategy("tiny")) is made


def test_what_does_not_fit_is_refused_at_once(alone):
    wrong = {"name": ("gru", ValueError, "must default to 'gru'"),
             "config_class": (int, TypeError, "must be a subclass of cfg.encoder.EncoderConfig")}
    for attribute, (value, error, message) in wrong.items():
        with raises(error, message):
            register_strategy(type("Wrong", (TinyStrategy,), {attribute: value}))
    with raises(TypeError, "must be a subclass of encoders.EncoderStrategy"):
        register_strategy(type("Wrong", (), {"name": "tiny", "config_class": TinyConfig}))
    with raises(ValueError, "name must be lower case letters"):
        register_strategy(type("Wrong", (TinyStrategy,), {"name": "No Good"}))
    assert "tiny" not in default_registry().names()


def test_a_script_has_it_on_its_command_line(tmp_path):
    """A second process that registers it goes on with the run; one that does not is told what to register."""
    pytest.importorskip("lightning")
    (tmp_path / "own.py").write_text(SCRIPT)
    paths = os.pathsep.join(str(ROOT / part) for part in ("src", "libs", "tests/support"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        return run_python(tmp_path, *arguments, environment=environment)

    quick = ["encoder=tiny", "trainer.max_epochs=1", "job.refit=false", "hydra.run.dir=run"]
    done = run("own.py", *quick)
    assert done.returncode == 0, done.stderr
    use = ["job=predict", "run=run", "job.output=p.csv", "hydra.run.dir=other"]
    done = run("-m", "app", *use)
    assert done.returncode != 0 and "encoders.register_strategy(TinyStrategy), of tiny_encoder" in done.stderr
    done = run("own.py", *use)
    assert done.returncode == 0 and (tmp_path / "p.csv").exists(), done.stderr

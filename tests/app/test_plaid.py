"""PLAID as the archive has it: read and learned from where the sktime package, which ships it, is installed."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.data import load_data
from app.jobs import run_job
from app_runs import compose_app


@pytest.fixture(scope="module")
def files():
    """The settings that name the two files. ``PLAID=required`` makes of their absence a failure."""
    found = find_spec("sktime")
    packages = found.submodule_search_locations if found is not None else ()
    places = [Path(package) / "datasets" / "data" / "PLAID" for package in packages]
    there = [place for place in places if place.is_dir()]
    if not there:
        reason = "the sktime package, which holds PLAID, is not installed: PLAID was NOT read"
        (pytest.fail if os.environ.get("PLAID") == "required" else pytest.skip)(reason)
    return [f"data.{part}_path={there[0] / f'PLAID_{part.upper()}.ts'}" for part in ("train", "test")]


def test_plaid_is_what_its_archive_says(files):
    data = load_data(compose_app(["data=ts", *files]).data)
    assert len(data.train) == len(data.test) == 537 and len(data.classes) == 11 and data.input_size == 1
    lengths = data.train.lengths + data.test.lengths
    assert (min(lengths), max(lengths)) == (100, 1344)


def test_its_experiments_run_on_it(files, tmp_path):
    for name in ("plaid", "plaid_no_stem"):
        settings = [f"experiment={name}", *files, "trainer.max_epochs=1", "trainer.limit_batches=2",
                    "encoder.hidden_size=16", "encoder.num_layers=1", "trainer.progress=false"]
        (tmp_path / name).mkdir()
        assert run_job(compose_app(settings), tmp_path / name) > 0
        assert (tmp_path / name / "report.html").is_file()

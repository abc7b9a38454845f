"""Sweeps: every job runs and is in the table; a failed one does not affect the others."""

import csv
import json

import pytest

from app.sweep import collect
from app.sweep.jobs import AIMS, aim_of
from app_runs import QUICK, run_app


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three jobs, the second of which breaks a rule that only the run itself can check, on the data."""
    where = tmp_path_factory.mktemp("sweep")
    done = run_app(where, "-m", *QUICK, "encoder.input_size=12,5,null", "hydra.sweep.dir=all", "trainer.progress=false")
    return done, where / "all"


def test_a_failing_job_leaves_its_siblings_alone_and_sets_the_exit_code(sweep):
    done, folder = sweep
    assert done.returncode == 1
    assert (folder / "0" / "metrics.json").is_file() and (folder / "2" / "metrics.json").is_file()
    assert not (folder / "1" / "metrics.json").exists()
    failure = json.loads((folder / "1" / "failure.json").read_text())
    assert failure["error"].startswith("ConfigError: encoder.input_size must be 12")
    assert "Traceback" not in done.stdout + done.stderr


def test_one_table_ends_the_sweep(sweep):
    done, folder = sweep
    assert done.stdout.count("best validation loss first") == 1
    table = done.stdout[done.stdout.index("best validation loss first"):]
    assert "input_size" in table and "test acc" in table and "failed" in table
    assert "job 1 failed: ConfigError: encoder.input_size must be" in table
    with open(folder / "sweep.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and rows[-1]["job"] == "1" and "input_size" in rows[-1]["error"]
    assert {row["encoder.input_size"] for row in rows} == {"12", "5", "null"}
    assert float(rows[0]["val_loss"]) <= float(rows[1]["val_loss"])
    for row in rows[:2]:
        results = json.loads((folder / row["job"] / "metrics.json").read_text())
        assert float(row["test_accuracy"]) == results["test_accuracy"]


def test_rows_show_only_settings_that_differ(tmp_path):
    for name, values in {
        "10": {"overrides": ["a=1", "b=x", "same=1"], "val_loss": 0.5},
        "2": {"overrides": ["a=2", "same=1"], "val_loss": 0.1},
        "3": {"overrides": ["a=3", "same=1"], "error": "ValueError: no"},
    }.items():
        (tmp_path / name).mkdir()
        file = "failure.json" if "error" in values else "metrics.json"
        (tmp_path / name / file).write_text(json.dumps(values))
    (tmp_path / "4" / ".hydra").mkdir(parents=True)
    (tmp_path / "4" / ".hydra" / "overrides.yaml").write_text("- a=4\n- same=1\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "5" / ".hydra").mkdir(parents=True)
    (tmp_path / "5" / ".hydra" / "overrides.yaml").write_text("- a=5\n- same=1\n")
    (tmp_path / "5" / "metrics.json").write_text('{"val_loss": 0.')
    rows = collect(tmp_path)
    assert [row["job"] for row in rows] == ["2", "10", "3", "4", "5"]
    assert rows[0]["settings"] == {"a": "2", "b": ""} and rows[1]["settings"] == {"a": "1", "b": "x"}
    assert rows[3]["error"].startswith("ended without a result") and rows[3]["settings"] == {"a": "4", "b": ""}
    assert "metrics.json must be a readable file of JSON" in rows[4]["error"] and rows[4]["settings"]["a"] == "5"


def test_trained_runs_are_never_in_the_order_of_their_test_data(tmp_path):
    runs = {"0": {"train_loss": 0.3, "test_loss": 0.1}, "1": {"train_loss": 0.2, "test_loss": 0.9}}
    for name, figures in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"overrides": [f"seed={name}"], **figures}))
    rows = collect(tmp_path)
    assert [row["job"] for row in rows] == ["1", "0"] and AIMS[aim_of(rows)] == "training loss"


def test_a_sweep_that_works_exits_with_zero(tmp_path):
    done = run_app(tmp_path, "-m", *QUICK, "encoder=gated_deltanet,rwkv7", "trainer.progress=false")
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("2 jobs, best validation loss first"):]
    assert "gated_deltanet" in table and "rwkv7" in table

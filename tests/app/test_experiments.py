"""Every experiment runs, made short; what its runs must reach is checked by the experiment itself when run in full."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from app.data import japanese_vowels
from app.jobs import run_job
from app_runs import compose_app
from cfg.hydra_versions import version_base
from cfg.paths import conf_dir
from myfla.testing import cases

FILES = Path(japanese_vowels.__file__).parent / "files"
# PLAID's own files are not ours to ship: here, that others of their format go through.
PLAID = [f"data.{part}_path={FILES / f'JapaneseVowels_{part.upper()}.ts'}" for part in ("train", "test")]
WATCH = ["data.train_path=watch.parquet"]  # as tools/watch_table.py writes it; see `write_watch`
NEEDS = {"plaid": PLAID, "plaid_no_stem": PLAID, "smartwatch": WATCH}
EXPERIMENTS = sorted(path.stem for path in Path(conf_dir(), "experiment").glob("*.yaml"))
SHORT = ["trainer.max_epochs=1", "trainer.progress=false", "encoder.hidden_size=16"]
SYNTHETIC = ["data.train_sequences=40", "data.test_sequences=4"]


def write_watch(path):
    """Eight short recordings of four people with the columns of the real table."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"recording": i, "seconds": step / 50, "subject": i % 4, "exercise": "PEN" if i < 4 else "ROW",
             **{name: float(i + step) for name in ("ax", "ay", "az", "wx", "wy", "wz")}}
            for i in range(8) for step in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), path)


@cases(name=EXPERIMENTS)
def test_every_experiment_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "smartwatch":
        write_watch("watch.parquet")
    settings = [f"experiment={name}", *NEEDS.get(name, ()), *SHORT]
    if compose_app(settings).data.name == "synthetic":
        settings += SYNTHETIC
    assert run_job(compose_app(settings), tmp_path) > 0
    assert (tmp_path / "metrics.json").is_file()


@cases(name=[name for name in EXPERIMENTS if name != "quick"])
def test_every_check_speaks_of_runs_that_the_sweep_has(name):
    from app.sweep import register_sweep_table
    from cfg.app import register_configs

    register_configs()
    register_sweep_table()
    with initialize_config_dir(str(conf_dir()), **version_base()):
        config = compose("config", [f"experiment={name}", *NEEDS.get(name, ())], return_hydra_config=True)
    swept = {key: str(values).lower().split(",") for key, values in (config.hydra.sweeper.params or {}).items()}
    assert bool(swept) == bool(config.checks)
    for check in config.checks:
        for key, value in check.where.items():
            assert str(value).lower() in swept[key], (check, swept)

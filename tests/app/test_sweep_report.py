"""The report of a sweep: seeds joined, the best first, what each setting does, and names that are shown as they are."""

import csv
import json
import statistics
import sys

import pytest

from app import extras
from app.checks import Verdict
from app.page.run_page import repeat_command
from app.page.sweep_page import write_sweep_page
from app.plots.effects import effect_figure
from app.plots.style import to_svg
from app.sweep import collect
from app.sweep.groups import figures_of, group
from app.sweep.table import show, write_groups, write_jobs
from app_runs import QUICK, run_app
from fake_slurm import install
from pages import HOSTILE, assert_nothing_is_loaded

ACCURACY = {("true", 0): 0.9, ("true", 1): 0.7, ("false", 0): 0.95, ("false", 1): 0.85}


def leave(folder, jobs):
    for name, (overrides, values) in enumerate(jobs):
        (folder / str(name)).mkdir(parents=True)
        file = "failure.json" if "error" in values else "metrics.json"
        (folder / str(name) / file).write_text(json.dumps({"overrides": overrides, **values}))
    return collect(folder)


@pytest.fixture
def rows(tmp_path):
    jobs = [([f"encoder.use_gate={gate}", f"seed={seed}", "job.noise=0.5"],
             {"val_loss": 1 - value, "test_loss": 2.0, "test_accuracy": value})
            for (gate, seed), value in ACCURACY.items()]
    return leave(tmp_path / "sweep", [*jobs, (["encoder.use_gate=maybe", "seed=0", "job.noise=0.5"],
                                              {"error": "ConfigError: <script>no</script>"})])


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_joined_and_the_best_mean_comes_first(rows):
    first, second, failed = group(rows)
    assert first.settings == {"encoder.use_gate": "false"} and second.settings == {"encoder.use_gate": "true"}
    assert first.spread["test_accuracy"] == pytest.approx((0.9, statistics.stdev([0.95, 0.85])))
    assert second.spread["val_loss"] == pytest.approx((0.2, statistics.stdev([0.1, 0.3])))
    assert [row["seed"] if "seed" in row else row["settings"]["seed"] for row in first.rows] == ["0", "1"]
    assert not failed.rows and failed.failed[0]["error"].startswith("ConfigError")
    assert [figure.key for figure in figures_of(rows)] == ["val_loss", "test_accuracy"]


def test_tables_hold_every_job_and_every_group(rows, tmp_path, capsys):
    write_jobs(rows, tmp_path / "sweep.csv")
    write_groups(group(rows), rows, tmp_path / "means.csv")
    jobs, means = read(tmp_path / "sweep.csv"), read(tmp_path / "means.csv")
    assert [row["job"] for row in jobs] == ["2", "0", "3", "1", "4"] and "<script>" in jobs[-1]["error"]
    assert [(row["encoder.use_gate"], row["jobs"], row["failed"]) for row in means] == [
        ("false", "2", "0"), ("true", "2", "0"), ("maybe", "0", "1")]
    assert float(means[0]["test_accuracy_mean"]) == pytest.approx(0.9) and means[2]["test_accuracy_mean"] == ""
    show(rows, group(rows), tmp_path)
    shown = capsys.readouterr().out
    assert "5 jobs, best validation loss first" in shown and "90.00% \u00b1 7.07%" in shown
    assert "job 4 failed: ConfigError: <script>no</script>" in shown


def test_the_page_has_the_best_its_command_the_failures_and_the_effects(rows, tmp_path):
    verdicts = [Verdict("test_accuracy >= <b>", 4, 0.85, False, ""), Verdict("x", 0, None, False, "no run")]
    path = write_sweep_page(tmp_path, rows, group(rows), verdicts)
    page = assert_nothing_is_loaded(path.read_text(encoding="utf-8"))
    shown = " ".join(page.texts)
    assert "python -m app encoder.use_gate=false seed=0 job.noise=0.5" in shown
    assert "ConfigError: <script>no</script>" in shown and "90.00% \u00b1 7.07%" in shown
    assert "missed" in shown and "0.8500" in shown and "no run" in shown and "5 jobs, 1 failed" in shown
    assert page.tags.count("svg") == 1, "use_gate; the seed is no setting"


def test_a_sweep_of_nothing_but_failures_and_hostile_names_has_a_page(tmp_path):
    jobs = [([f"data.path={name}", f"+{HOSTILE[0]}=1"], {"error": name or "none"}) for name in HOSTILE]
    rows = leave(tmp_path / "sweep", jobs)
    page = assert_nothing_is_loaded(write_sweep_page(tmp_path, rows, group(rows), []).read_text(encoding="utf-8"))
    assert HOSTILE[0] in " ".join(page.texts) and "svg" not in page.tags
    show(rows, group(rows), tmp_path)


def test_encoders_of_several_sizes_are_shown_with_them(tmp_path):
    jobs = [([f"encoder={name}", f"seed={seed}"], {"val_loss": loss, "encoder_parameters": size})
            for name, loss, size in (("kda", 0.5, 96096), ("gla", 0.25, 50313)) for seed in (0, 1)]
    rows = leave(tmp_path / "sweep", jobs)
    assert [figure.label for figure in figures_of(rows)][-1] == "parameters"
    shown = " ".join(assert_nothing_is_loaded(
        write_sweep_page(tmp_path, rows, group(rows), []).read_text(encoding="utf-8")).texts)
    assert "50,313" in shown and "96,096" in shown and "50,313 \u00b1" not in shown
    assert not [figure for figure in figures_of(rows[:2]) if figure.label == "parameters"], "one size for all"


def test_figures_of_a_benchmark_are_compared_as_well(tmp_path):
    jobs = [([f"encoder={name}"], {"seconds_per_token": value, "prefill_tokens_per_s": 1 / value})
            for name, value in (("slow", 0.5), ("fast", 0.25), ("odd", float("nan")))]
    rows = leave(tmp_path / "sweep", jobs)
    assert [row["settings"]["encoder"] for row in rows] == ["fast", "slow", "odd"]
    assert "fast" in write_sweep_page(tmp_path, rows, group(rows), []).read_text(encoding="utf-8")


@pytest.mark.parametrize(("values", "order"), [
    (["10", "9", "1e-3"], ["1e-3", "9", "10"]),
    (["true", "false", "true"], ["false", "true"]),
    (["chunk", "", "a<b"], ["chunk", "default", "a&lt;b"]),
])
def test_values_of_a_setting_stand_in_their_order(values, order):
    svg = to_svg(effect_figure("x", values, [("loss", [1.0, None, 3.0])]), "e", "e")
    places = [svg.index(f">{value}<") for value in order]
    assert places == sorted(places)


def test_many_numbers_have_an_axis_of_their_own():
    values = [str(10.0 ** -(i / 3)) for i in range(12)]
    svg = to_svg(effect_figure("rate", values, [("loss", [float(i) for i in range(12)])]), "e", "e")
    assert ">0.001<" in svg and values[4] not in svg


@pytest.mark.parametrize(("argument", "extra"), [
    ("hydra/launcher=joblib", "sweep"), ("hydra/launcher=submitit_slurm", "slurm"), ("hydra/sweeper=optuna", "optuna"),
    ("hparams_search=optuna", "optuna"),
])
def test_a_launcher_or_sweeper_that_is_not_installed_names_its_extra(argument, extra, monkeypatch):
    def nowhere(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(extras, "find_spec", nowhere)
    found = extras.missing_extra(["-m", argument])
    assert found.startswith(f"{argument} needs the package 'hydra-") and found.endswith(f"pip install 'myfla[{extra}]'")
    monkeypatch.setattr(extras, "find_spec", lambda name: object())
    assert extras.missing_extra([argument]) is None and extras.missing_extra(["encoder=rwkv7"]) is None


def test_the_search_can_be_run_again_as_one_run(tmp_path):
    """With `hparams_search` in a command, it would search again."""
    assert repeat_command(["hparams_search=optuna", "seed=1"]).endswith(" seed=1 hydra.mode=RUN")
    assert "hydra.mode" not in repeat_command(["experiment=quick"])


def installed(package):
    return pytest.mark.skipif(not extras._installed(package), reason=f"{package} is an extra that is not installed")


@pytest.mark.parametrize("arguments", [
    pytest.param(["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"], marks=installed("hydra_joblib_launcher")),
    pytest.param(["-m", "hydra/launcher=submitit_local"], marks=installed("hydra_submitit_launcher")),
    pytest.param(["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=1",
                  "hydra.sweeper.sampler.seed=0"], marks=installed("hydra_optuna_sweeper")),
])
def test_a_failed_job_hurts_no_other_under_any_launcher(tmp_path, arguments):
    """One of the values breaks a rule that only the run itself can check, on the data."""
    done = run_app(tmp_path, *arguments, *QUICK, "encoder.input_size=choice(5,12)", "hydra.sweep.dir=all",
                   "trainer.progress=false", "trainer.threads=1")
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    rows = read(tmp_path / "all" / "sweep.csv")
    assert {bool(row["error"]) for row in rows} == {True, False} and rows[0]["val_loss"]
    assert (tmp_path / "all" / "sweep.html").is_file() and "encoder.input_size must be 12" in done.stdout


@installed("hydra_submitit_launcher")
def test_slurm_is_composed(tmp_path):
    done = run_app(tmp_path, "hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "--cfg", "hydra", "-p",
                   "hydra.launcher")
    assert done.returncode == 0 and "nodes: 2" in done.stdout and "SlurmLauncher" in done.stdout, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the commands are scripts of POSIX")
@installed("hydra_submitit_launcher")
def test_a_sweep_goes_through_slurm(tmp_path, monkeypatch):
    """What Slurm is asked for, and that jobs train in the environment that it makes."""
    for name, value in install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    wanted = {"partition": "gpu", "time": 90, "nodes": 1, "cpus-per-task": 3, "gpus-per-node": 1, "mem": "8GB"}
    done = run_app(tmp_path, "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu",
                   "hydra.launcher.timeout_min=90", "hydra.launcher.cpus_per_task=3", "hydra.launcher.gpus_per_node=1",
                   "hydra.launcher.mem_gb=8", "hydra.launcher.array_parallelism=2", *QUICK, "trainer.max_epochs=1",
                   "job.refit=false", "encoder.use_gate=true,false", "hydra.sweep.dir=all", "trainer.progress=false")
    assert done.returncode == 0, done.stderr
    script = (tmp_path / "slurm" / "script").read_text()
    for name, value in {**wanted, "array": "0-1%2", "ntasks-per-node": 1}.items():
        assert f"#SBATCH --{name}={value}\n" in script, (name, script)
    rows = read(tmp_path / "all" / "sweep.csv")
    assert len(rows) == 2 and all(float(row["test_accuracy"]) > 0 and not row["error"] for row in rows)


@installed("hydra_optuna_sweeper")
def test_the_example_of_a_search_is_composed(tmp_path):
    done = run_app(tmp_path, "hparams_search=optuna", "hydra.sweeper.n_trials=7", "--cfg", "all")
    assert done.returncode == 0, done.stderr
    assert "n_trials: 7" in done.stdout and "interval(0.0003, 0.01)" in done.stdout
    assert "refit: false" in done.stdout and "mode: MULTIRUN" in done.stdout

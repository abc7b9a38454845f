"""The command line without training: help, composed configs, and errors that name the key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import RunError
from app_runs import ROOT, compose_app, run_app, run_python
from cfg.encoder import ENCODER_CONFIGS
from cfg.validation import ConfigError

EIGHT_JOBS = ["encoder.use_gate=true,false", "encoder.use_short_conv=true,false", "encoder.allow_neg_eigval=true,false"]


def test_help_lists_commands_choices_and_settings(tmp_path):
    done = run_app(tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    encoders = "encoder: " + ", ".join(sorted(ENCODER_CONFIGS))
    for part in ["Typical commands", "python -m app -m encoder=", encoders, "job: ",
                 "data: counting, japanese_vowels", "trainer: cpu, ddp, debug, fsdp, gpu, overfit",
                 "logger: csv, mlflow, tensorboard, wandb", "experiment: ", "allow_neg_eigval: false",
                 "max_epochs:", "--hydra-help"]:
        assert part in done.stdout, part
    assert not done.stderr


def test_help_and_configs_never_import_torch(tmp_path):
    script = "\n".join([
        "import os, sys, runpy",
        "os.environ.update(COMP_LINE='myfla encoder=', COMP_POINT='14')",
        f"sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT / 'libs')!r}]",
        "sys.argv = ['app', *sys.argv[1:]]",
        "try: runpy.run_module('app', run_name='__main__')",
        "except SystemExit as stop: assert not stop.code, stop.code",
        "heavy = {'torch', 'lightning', 'matplotlib', 'numpy', 'rich'} & set(sys.modules)",
        "assert not heavy, heavy",
    ])
    for arguments in (["--help"], ["--cfg", "job"], ["--info", "searchpath"], ["-sc", "query=bash"]):
        done = run_python(tmp_path, "-c", script, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    assert "encoder=gated_deltanet" in done.stdout and "encoder=rwkv7" in done.stdout, "tab completion"


def test_cfg_shows_the_config_and_runs_nothing(tmp_path):
    done = run_app(tmp_path, "encoder=rwkv7", "job.learning_rate=0.01", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "name: rwkv7" in done.stdout and "learning_rate: 0.01" in done.stdout
    done = run_app(tmp_path, "--cfg", "job", "-p", "encoder", "--resolve")
    assert "use_gate: true" in done.stdout and "learning_rate" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("encoder.num_heads=0", ["error: encoder.num_heads must be an integer from 1"]),
        ("encoder.dropout=1.5", ["error: encoder.dropout must be a finite number"]),
        ("encoder.direction=sideways", ["error: encoder.direction must be one of causal, bidirectional"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_key(tmp_path, override, parts):
    done = run_app(tmp_path, override)
    assert done.returncode == 1
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("encoder.num_haeds=4", ["num_haeds", "did you mean 'encoder.num_heads'?"]),
        ("encoder.num_heads=four", ["encoder.num_heads", "four"]),
        ("encoder.use_gate=maybe", ["encoder.use_gate", "maybe"]),
        ("encoder=gated_deltanett", ["gated_deltanett", "rwkv7"]),
        ("job=trian", ["trian", "train"]),
        ("data=ts", ["data.train_path"]),
    ],
)
def test_what_hydra_refuses_is_named_too(tmp_path, override, parts):
    done = run_app(tmp_path, override)
    assert done.returncode == 1
    for part in parts:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=0", "data.batch_size must be an integer from 1"),
        ("data.validation_fraction=1",
         "data.validation_fraction must be a finite number from 0 and below 1 or null; got 1.0"),
        ("data.validation_fraction=nan", "data.validation_fraction must be a finite number"),
        ("job.learning_rate=0", "job.learning_rate must be a finite number above 0"),
        ("job.learning_rate=inf", "job.learning_rate must be a finite number"),
        ("job.warmup=-0.1", "job.warmup must be a finite number from 0 to 1; got -0.1"),
        ("job.weight_decay=-1", "job.weight_decay must be"),
        ("job.label_smoothing=1", "job.label_smoothing must be a finite number from 0 and below 1"),
        ("job.noise=-1", "job.noise must be"),
        ("job.offset=nan", "job.offset must be a finite number from 0 to 100"),
        ("job.test_pieces=0", "job.test_pieces must be an integer from 1"),
        ("trainer.limit_batches=0", "trainer.limit_batches must be an integer from 1"),
        ("trainer.num_nodes=0", "trainer.num_nodes must be an integer from 1"),
        ("trainer.strategy=dp", "trainer.strategy must be one of auto, ddp, fsdp; got 'dp'"),
        ("trainer.strategy=fsdp", "trainer.strategy must be ddp or auto with trainer.accelerator=cpu; got 'fsdp'"),
        ("trainer.devices=2", "trainer.strategy must be ddp or fsdp for 2 devices; got 'auto'; use trainer=ddp"),
        ("logger.name=abacus", "logger.name must be one of csv, tensorboard, wandb, mlflow; got 'abacus'"),
        ("job.patience=0", "job.patience must be an integer from 1"),
        ("job.objective=regres", "job.objective must be one of classify, regress, next_step; got 'regres'"),
        ("job.class_weights=equal", "job.class_weights must be one of none, balanced; got 'equal'"),
        ("data.batch_tokens=0", "data.batch_tokens must be an integer from 1 to 1073741824 or null; got 0"),
        ("data.test_fraction=0", "data.test_fraction must be a finite number above 0 and below 1; got 0.0"),
        ("data.missing=zero", "data.missing must be one of error, mean, forward; got 'zero'"),
        ("trainer.max_epochs=0", "trainer.max_epochs must be an integer from 1"),
        ("trainer.gradient_clip_val=0", "trainer.gradient_clip_val must be a finite number above 0"),
        ("trainer.precision=16", "trainer.precision must be one of 32-true, 64-true, 16-mixed, bf16-mixed; got '16'"),
        ("trainer.accelerator=abacus", "trainer.accelerator must be one of auto, cpu, gpu, mps; got 'abacus'"),
        ("trainer.devices=0", "trainer.devices must be an integer from 1"),
        ("trainer.threads=0", "trainer.threads must be an integer from 1 to 1024 or null; got 0"),
        ("seed=-1", "seed must be an integer from 0"),
    ],
)
def test_every_rule_of_the_app_config_names_its_key(override, message):
    with pytest.raises(ConfigError) as caught:
        compose_app([override])
    assert str(caught.value).startswith(message)


def test_defaults_and_presets_pass_their_own_rules():
    config = compose_app()
    assert (config.encoder.name, config.data.name, config.job.name) == ("gated_deltanet", "japanese_vowels", "train")
    assert compose_app(["encoder=rwkv7", "trainer=gpu", "experiment=quick"]).trainer.accelerator == "gpu"
    assert compose_app(["trainer.gradient_clip_val=null", "trainer.threads=3"]).trainer.gradient_clip_val is None


def test_no_class_paths_in_yaml():
    files = list((ROOT / "conf").rglob("*.yaml"))
    assert len(files) >= 8
    for path in files:
        assert "_target_" not in path.read_text(encoding="utf-8"), path


def test_an_unknown_job_names_the_nearest(tmp_path):
    from app.jobs import run_job

    config = compose_app()
    config.job.name = "trian"
    with pytest.raises(ConfigError, match=r"job.name must be one of .*train.*; got 'trian'; did you mean 'train'"):
        run_job(config, tmp_path)


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    from app import jobs

    def missing(name):
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning")

    monkeypatch.setattr(jobs, "import_module", missing)
    with pytest.raises(RunError, match=r"job 'train' needs the package 'lightning'; pip install 'myfla\[app\]'"):
        jobs.run_job(compose_app(), tmp_path)


def test_the_advertised_sweep_has_eight_legal_jobs():
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = OverridesParser.create().parse_overrides(["encoder=gated_deltanet", *EIGHT_JOBS])
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    flags = {(c.use_gate, c.use_short_conv, c.allow_neg_eigval) for c in (compose_app(job).encoder for job in jobs)}
    assert len(jobs) == len(flags) == 8


def test_the_installed_command_and_module_run_anywhere(tmp_path):
    """In an installation, editable or not; a bare checkout has no command."""
    command = Path(sys.executable).parent / "myfla"
    if not command.exists():
        pytest.skip("myfla is not installed in this environment")
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for arguments in ([str(command), "--version"], [sys.executable, "-m", "app", "--version"]):
        done = subprocess.run(arguments, cwd=str(tmp_path), env=bare, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.startswith("myfla "), done.stderr


@pytest.mark.parametrize("name", ["app", "cfg", "encoders", "myfla"])
@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_another_module_of_our_name_is_reported(tmp_path, name, form):
    """By the console script, whatever the name; Python itself looks for `app` before anything of ours can run."""
    other = tmp_path / form.format(name)
    other.parent.mkdir(exist_ok=True)
    other.write_text("raise RuntimeError('this is somebody else')")
    path = [str(tmp_path), str(ROOT / "src"), str(ROOT / "libs")]
    message = (f"error: the package {name!r} must be the one of this application; got {other}, which has its name and "
               "comes first; rename it, take its folder off PYTHONPATH, or use the command `myfla` in place of "
               "`python -m app`")
    commands = [("-c", f"import sys; sys.path[:1] = {path!r}; from myfla_command import main; main()", "--version")]
    if name != "app":
        commands.append(("-c", f"import sys, runpy; sys.path[:1] = {path!r}; sys.argv = ['app', '--version']; "
                         "runpy.run_module('app', run_name='__main__')"))
    for command in commands:
        done = run_python(tmp_path, *command)
        assert done.returncode == 1 and done.stderr.strip() == message and not done.stdout

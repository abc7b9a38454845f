"""Pipes, devices and links to them where a file should be: refused by name, never waited for."""

import os
import re
import signal
from contextlib import contextmanager

import pytest

from app.data import read_source
from app.errors import DataError, RunError
from app.inputs import open_run_data
from app.streaming.lines import open_file
from app.streaming.sinks import FileSink, StdoutSink
from app.streaming.store import FILE, Store
from app.sweep import collect
from app_runs import compose_app
from cfg.data import DATA_CONFIGS
from encoders.training.plain_yaml import find_interpolation
from encoders.training.run_config import read_config
from encoders.training.trained import load_trained
from myfla.testing import cases, raises
from myfla.utils.regular import read_regular
from readable_files import KINDS
from runs import untrained

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")


def pipe(path):
    os.mkfifo(path)


def link_to_pipe(path):
    os.mkfifo(path + ".pipe")
    os.symlink(path + ".pipe", path)


def link_to_device(path):
    os.symlink("/dev/zero", path)


def link_to_itself(path):
    os.symlink(path, path)


SPECIAL = (pipe, link_to_pipe, link_to_device, link_to_itself)


@contextmanager
def at_once(seconds=5):
    """Ends what waits; a refusal takes no time."""

    def late(number, frame):
        raise AssertionError("it waited")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


#: What is read through `app.data.read_source`, which looks before any reader does.
DATA = ("Parquet table", "CSV table", ".ts file", "text")


@cases(kind=[kind for kind in KINDS if kind not in DATA], special=[pipe, link_to_device])
def test_a_file_of_any_kind_is_refused_where_it_is_not_regular(kind, special, tmp_path):
    path = KINDS[kind].write(tmp_path, 0)
    path.unlink()
    special(str(path))
    with at_once(), pytest.raises(ValueError, match="|".join(map(re.escape, (path.name, str(tmp_path))))):
        KINDS[kind].read(path)


@cases(name=["state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "state.sqlite-journal"], special=SPECIAL)
def test_every_file_of_a_state_folder_is_looked_at_first(name, special, tmp_path):
    assert FILE == "state.sqlite"
    special(str(tmp_path / name))
    with at_once(), pytest.raises(RunError, match=r"job.state=.* must be an intact state folder"):
        Store(tmp_path, {"model": "m"})


@cases(special=SPECIAL)
def test_where_a_stream_reads_and_writes(special, tmp_path):
    special(str(tmp_path / "x"))
    with at_once(), raises(RunError, "job.input must be a readable file; got"):
        open_file(tmp_path / "x")
    with at_once(), raises(RunError, "job.output must be a file that can be written; got"):
        FileSink(tmp_path / "x", None)
    special(str(tmp_path / "delivered"))
    with at_once(), pytest.raises((RunError, OSError)):
        StdoutSink(tmp_path, None, os.open(os.devnull, os.O_WRONLY))


@cases(special=SPECIAL, data=[("ts", "train_path"), ("table", "train_path"), ("table", "test_path"),
                              ("text", "train_path"), ("text", "tokenizer")])
def test_where_data_come_from(special, data, tmp_path):
    name, key = data
    (tmp_path / "there").write_text("x\n")
    special(str(tmp_path / "x"))
    paths = {"train_path": tmp_path / "there", key: tmp_path / "x"}
    config = DATA_CONFIGS[name](**{field: str(path) for field, path in paths.items()})
    with at_once(), raises(DataError, f"data.{key} must be "):
        read_source(config)


@cases(name=["ts", "table", "text"], special=[pipe, link_to_pipe, link_to_device])
def test_a_folder_of_data_that_holds_one(name, special, tmp_path):
    (tmp_path / "data" / "below").mkdir(parents=True)
    special(str(tmp_path / "data" / "below" / "x.csv"))
    config = DATA_CONFIGS[name](train_path=str(tmp_path / "data"))
    with at_once(), raises(DataError, "data.train_path must hold regular files only; got "):
        read_source(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "run")


@cases(special=[pipe, link_to_itself])
def test_the_file_of_a_job(special, run, tmp_path):
    special(str(tmp_path / "x.ts"))
    config = compose_app([f"run={run}", "job=evaluate", f"job.input={tmp_path / 'x.ts'}", "data=ts",
                          f"data.train_path={tmp_path / 'x.ts'}"])
    with at_once(), pytest.raises(ValueError, match="must be"):
        open_run_data(load_trained(run), config, config.job.input, True)


@cases(special=SPECIAL)
def test_a_sweep_with_one_among_its_results(special, tmp_path):
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    special(str(tmp_path / "0" / ".hydra" / "overrides.yaml"))
    with at_once():
        collect(tmp_path)


def test_a_limit_holds_for_files_that_grow(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    with raises(OSError, "must have at most 4 bytes, not 5"):
        read_regular(tmp_path / "x", 4)


def nested(depth):
    """An interpolation in an interpolation in ..."""
    text = "1"
    for _ in range(depth):
        text = "${oc.create:{a: " + text + "}}"
    return text


BOMBS = {
    "secret": ("{text}\nseed: ${{oc.env:SECRET}}\n", "an interpolation at seed: '${oc.env:SECRET}'"),
    "secret inside": ("{text}\nlogger: {{name: csv, project: 'x ${{oc.env:SECRET}}'}}\n", "project: 'x ${oc.env"),
    "secret in a list": ("{text}\nchecks: [{{metric: '${{seed}}'}}]\n", "checks.0.metric: '${seed}'"),
    "secret as a key": ("{text}\nlogger: {{'${{seed}}': csv}}\n", "logger.${seed}: a key"),
    "nested interpolations": ("{text}\nrun: '" + nested(40).replace("{", "{{").replace("}", "}}") + "'\n", "at run: "),
    "aliases": ("{text}\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij")), "the alias *a"),
    "merged": ("{text}\nmore:\n  <<: {{x: 1}}\n", "must not merge"),
    "an alias of itself": ("{text}\na: &a [*a]\n", "the alias *a"),
    "twice": ("{text}\nseed: 1\nseed: 2\n", "each key once; got 'seed'"),
    "deep": ("{text}\na: " + "[" * 2000 + "\n", "nested at most 32 deep"),
    "long": ("{text}\n#" + "x" * (300 << 10) + "\n", "must have at most 262144 bytes"),
    "digits": ("{text}\nrun: " + "9" * 200000 + "\n", "config.yaml"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return KINDS["run config"].write(tmp_path_factory.mktemp("config"), 0).read_text()


@cases(bomb=list(BOMBS))
def test_a_stored_config_is_plain_data(bomb, written, tmp_path, monkeypatch):
    form, said = BOMBS[bomb]
    monkeypatch.setenv("SECRET", "password")
    path = tmp_path / "config.yaml"
    kept = [line for line in written.splitlines() if not line.startswith(("seed", "run:", "checks", "logger", "  "))]
    path.write_text(form.format(text="\n".join(kept)))
    with at_once(), pytest.raises(RunError) as refusal:
        read_config(tmp_path)
    assert said in str(refusal.value) and "password" not in str(refusal.value)


def test_what_a_run_writes_is_read_as_it_was(tmp_path):
    config = compose_app(["job.learning_rate=1e-5", "data=ts", "data.train_path='2024-01-01'", "seed=7",
                          "job.weight_decay=3", "encoder=rwkv7"])
    from encoders.training.run_config import write_config

    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path) == config
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("learning_rate: 1.0e-05", "learning_rate: 1e-5"))
    assert read_config(tmp_path).job.learning_rate == 1e-5


def test_an_interpolation_is_found_wherever_it_is():
    assert find_interpolation({"a": [1, {"b": "x"}], "c": None}) == ""
    assert find_interpolation({"a": [1, {"b": "${x}"}]}) == "a.1.b: '${x}'"

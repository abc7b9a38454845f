"""Full disks, closed outputs, folders that vanish, settings that were edited: one line with the real reason."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.errors import RunError
from app.reopening import edited, reopen
from app.streaming.store import Store
from app_runs import ROOT, compose_app
from children import needs_fork
from commands import command
from myfla.testing import cases
from streams import as_json, make_rows, make_run, parse

pytestmark = needs_fork
QUICK = ("experiment=quick", "trainer.progress=false")


@pytest.fixture
def small_disk():
    """A file system of 1 MiB; skipped where one cannot be mounted."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "trained")


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "in.jsonl").write_text(as_json(make_rows(20000, 4000)))
    return folder


def one_line(done, *parts):
    assert done.code == 1, done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("error: ") and all(part in line for part in parts), line
    assert "Traceback" not in done.err and done.err.count("error:") == 1


def test_a_full_disk_below_the_state(small_disk, place, run):
    stream = ("job=stream", f"run={run}", "job.input=in.jsonl", "job.output=out.jsonl", "job.emit=embedding",
              "job.commit_seconds=0")
    one_line(command(place, *stream, f"job.state={small_disk}/state"), "job.state='", "No space left on device",
             "free some space on its disk, and start the job again")
    given = parse((place / "out.jsonl").read_text())
    shutil.copytree(str(small_disk / "state"), str(place / "state"))
    assert command(place, *stream, "job.state=state").code == 0
    rows = parse((place / "out.jsonl").read_text())
    assert [row["row"] for row in rows] == list(range(1, 20001)), "nothing is lost, nothing twice"
    assert rows[: len(given)] == given or len(given) > 0


@cases(output=["out.jsonl", "out.parquet"])
def test_a_full_disk_below_the_output(small_disk, place, run, output):
    if output == "out.parquet":
        pytest.importorskip("pyarrow")
    done = command(place, "job=stream", f"run={run}", "job.input=in.jsonl", f"job.output={small_disk}/{output}",
                   "job.state=state", "job.emit=embedding", "job.snapshot_seconds=0")
    one_line(done, "job.output='", "cannot be written: No space left on device", "start the job again")


def test_a_standard_output_that_takes_nothing(place, run):
    stream = ("job=stream", f"run={run}", "job.input=in.jsonl", "job.state=state")
    full = command(place, *stream, before=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1))
    one_line(full, "standard output cannot be written: No space left on device")
    full = command(place, "job=describe", before=lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1))
    one_line(full, "standard output: No space left on device")


@cases(arguments=[("job=describe",), ("job=stream", "run=x"), QUICK])
def test_a_standard_output_that_is_closed(tmp_path, arguments):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    code = f"exec {sys.executable} -m app {' '.join(arguments)} >&-"
    done = subprocess.run(["sh", "-c", code], cwd=str(tmp_path), env={**os.environ, "PYTHONPATH": paths}, timeout=120,
                          stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr.decode() == "error: standard output must be open; got a closed one; use > /dev/null to drop it\n"


def test_a_state_folder_that_vanishes(tmp_path, place, run):
    from app.streaming.store import FILE

    store = Store(tmp_path / "state", {"model": "m"})
    store.put("x", 1)
    shutil.rmtree(str(tmp_path / "state"))
    with pytest.raises(RunError, match=f"job.state=.* cannot be written: its {FILE} is no longer there; put it back"):
        store.commit()
    store.close(clean=False)


def test_a_full_disk_below_a_training(small_disk, tmp_path):
    done = command(tmp_path, *QUICK, f"hydra.run.dir={small_disk}/run")
    one_line(done, "No space left on device: '", str(small_disk))


@cases(room=[0, 3000])
def test_files_that_may_not_grow(tmp_path, room):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = command(tmp_path, *QUICK, "hydra.run.dir=run", before=limit)
    assert done.code == 1 and "Traceback" not in done.err


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that ended before its results."""
    from app.data import load_data
    from app.reopening import begin
    from encoders.training.run_config import read_config, write_config

    folder = tmp_path_factory.mktemp("cut") / "run"
    folder.mkdir()
    config = compose_app([*QUICK, "data.batch_size=16", "job.learning_rate=0.002"])
    write_config(config, folder / "config.yaml")
    begin(folder, read_config(folder), load_data(config.data), [])
    return folder


#: What is edited in config.yaml, and what is said of it.
EDITS = {
    "hidden_size: 16": ("hidden_size: 32", "encoder.hidden_size=32 (before: 16)"),
    "num_layers: 1": ("num_layers: 2", "encoder.num_layers=2 (before: 1)"),
    "seed: 0": ("seed: 1", "seed=1 (before: 0)"),
    "batch_size: 16": ("batch_size: 8", "data.batch_size=8 (before: 16)"),
    "learning_rate: 0.002": ("learning_rate: 0.1", "job.learning_rate=0.1 (before: 0.002)"),
    "deterministic: true": ("deterministic: false", "deterministic=False (before: True)"),
    "early_stopping: true": ("early_stopping: false", "callbacks.early_stopping=False (before: True)"),
    "dropout: ": ("dropout: 0.5 #", "encoder.dropout=0.5"),
    "precision: 32-true": ("precision: 64-true", "trainer.precision='64-true' (before: '32-true')"),
}


def edit(folder, cut, *edits):
    shutil.copytree(str(cut), str(folder))
    text = (folder / "config.yaml").read_text()
    for old in edits:
        assert old in text, old
        text = text.replace(old, EDITS[old][0] if old in EDITS else "threads: 3 #", 1)
    (folder / "config.yaml").write_text(text)


@cases(setting=list(EDITS))
def test_a_setting_that_was_edited_is_named(tmp_path, cut, setting):
    edit(tmp_path / "run", cut, setting)
    with pytest.raises(RunError) as refusal:
        reopen(tmp_path / "run")
    said = str(refusal.value)
    assert "must be resumed with the settings that it began with; got in its config.yaml" in said
    assert EDITS[setting][1] in said and "put them back, or train again" in said


def test_every_setting_that_was_edited_is_named(tmp_path, cut):
    edit(tmp_path / "run", cut, *EDITS)
    with pytest.raises(RunError) as refusal:
        reopen(tmp_path / "run")
    assert all(said in str(refusal.value) for _, said in EDITS.values())


def test_an_encoder_that_was_exchanged_is_named(tmp_path, cut):
    edit(tmp_path / "run", cut)
    from encoders.training.run_config import write_config

    write_config(compose_app([*QUICK, "encoder=rwkv7"]), tmp_path / "run" / "config.yaml")
    done = command(tmp_path, "run=run", "resume=true")
    one_line(done, "encoder.name='rwkv7' (before: 'gated_deltanet')")


def test_what_changes_no_number_may_be_edited_and_is_said(tmp_path, cut, caplog):
    edit(tmp_path / "run", cut, "threads: ")
    with caplog.at_level("INFO"):
        config, _ = reopen(tmp_path / "run")
    assert config.trainer.threads == 3 and "trainer.threads=3, edited since the run began with" in caplog.text


def test_differences_are_found_at_any_depth():
    assert edited({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3], "c": None}}) == {"a.b": ([1, 2], [1, 3])}
    assert json.loads(json.dumps(edited({}, {"x": 1}))) == {"x": [None, 1]}

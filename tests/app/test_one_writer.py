"""Two processes that would write to one place: the second is refused, and a kill leaves no lock behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from app.errors import RunError
from app.locks import FolderLock
from app.start import _take, leave_places
from app.workplace import Workplace
from app_runs import ROOT
from children import needs_fork
from commands import command
from myfla.testing import cases
from streams import as_json, make_rows, make_run, parse

pytestmark = needs_fork
LONG = ("experiment=quick", "trainer.progress=false", "trainer.max_epochs=1000", "job.patience=1000")


def waited_for(path, process=None):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def elsewhere(place, *arguments, **pipes):
    """A process of its own with the command line."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "app", *arguments], cwd=str(place), env=environment, **pipes)


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / ".hydra").iterdir()}


@cases(sweep=[False, True])
def test_a_second_training_in_the_same_folder_is_refused(tmp_path, sweep):
    place = tmp_path / "here"
    place.mkdir()
    where = ("-m", "seed=0", "hydra.sweep.dir=run") if sweep else ("hydra.run.dir=run",)
    folder = place / "run" / "0" if sweep else place / "run"
    child = elsewhere(place, *where, *LONG, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        waited_for(folder / "checkpoints" / "start.json")
        before = files(folder)
        again = command(place, *where, *LONG, "seed=7")
        assert again.code == 1 and "in which no other run is at work; got 'run'; wait for that run to end" in again.err
        if not sweep:
            again = command(place, "run=run", "resume=true")
            assert again.code == 1 and "in which no other run is at work" in again.err
        assert files(folder) == before, "the record of the first was touched"
    finally:
        child.kill()
        child.wait()
    lock = FolderLock(place / "run")
    assert lock.take(), "a killed process holds nothing"
    lock.leave()


def test_starts_of_the_same_second_have_folders_of_their_own(tmp_path):
    def config(*given):
        hydra = {"run": {"dir": str(tmp_path / "12-00-00")}, "overrides": {"hydra": [*given]}}
        return OmegaConf.create({"hydra": hydra})

    found = [config() for _ in range(3)]
    for one in found:
        _take(one, "run", False)
    assert [os.path.basename(one.hydra.run.dir) for one in found] == ["12-00-00", "12-00-00_2", "12-00-00_3"]
    with pytest.raises(RunError, match="in which no other run is at work"):
        _take(config("hydra.run.dir=x"), "run", False)
    leave_places()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_is_not_taken_for_one(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.take() and not second.take()
    first.leave()
    assert second.take() and not first.take() and (tmp_path / ".lock").exists()
    second.leave()
    second.leave()
    assert not list(tmp_path.iterdir())


def test_a_folder_is_left_as_it_was(tmp_path):
    place = Workplace(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / ".hydra").mkdir()
    place.leave()
    place.leave()
    assert not list(tmp_path.iterdir())
    place = Workplace(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "result").touch()
    place.leave()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "trained")


def stream(place, run, state, *arguments, **pipes):
    return elsewhere(place, "job=stream", f"run={run}", f"job.state={state}", *arguments, stdin=-1, stderr=-1, **pipes)


@cases(output=["out.jsonl", "out.parquet", None])
def test_a_second_stream_into_the_same_output_is_refused(tmp_path, run, output):
    if output == "out.parquet":
        pytest.importorskip("pyarrow")
    place, rows = tmp_path / "here", as_json(make_rows(6, 2)).encode()
    place.mkdir()
    arguments = [] if output is None else [f"job.output={output}"]

    def pipes():
        return {"stdout": open(str(place / "all.jsonl"), "ab") if output is None else subprocess.DEVNULL}

    first = stream(place, run, "a", *arguments, **pipes())
    first.stdin.write(rows)
    first.stdin.flush()
    waited_for(place / (output or "a/delivered"))
    waited_for(place / "a" / "state.sqlite")
    if output != "out.parquet":
        end = time.monotonic() + 60
        while not (place / (output or "all.jsonl")).stat().st_size:
            assert time.monotonic() < end
            time.sleep(0.01)
    second = stream(place, run, "b", *arguments, **pipes())
    said = second.communicate(rows, timeout=120)[1].decode()
    assert second.returncode == 1 and said.splitlines()[-1].startswith("error: "), said
    assert "that no other job writes to" in said and not (place / "b").exists()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = stream(place, run, "a", *arguments, **pipes())
    said = third.communicate(rows, timeout=120)[1].decode()
    assert third.returncode == 0, said
    if output != "out.parquet":
        assert [row["row"] for row in parse((place / (output or "all.jsonl")).read_text())] == list(range(1, 7))

"""Two processes that would write to one place: the second is refused, and a kill leaves no lock behind."""

import os
import signal
import time
from importlib import import_module

import pytest
from omegaconf import OmegaConf

from app.errors import RunError
from app.locks import FolderLock
from app.start import _take, leave_places
from app.workplace import Workplace
from children import finish, needs_fork
from commands import begin, command
from myfla.testing import cases
from streams import as_json, make_rows, make_run, parse

pytestmark = needs_fork
LONG = ("experiment=quick", "trainer.progress=false", "trainer.max_epochs=1000", "job.patience=1000")


def waited_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What the jobs need, once for all their processes."""
    for job in ("train", "stream"):
        import_module(f"app.jobs.{job}")


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / ".hydra").iterdir()}


@cases(sweep=[False, True])
def test_a_second_training_in_the_same_folder_is_refused(tmp_path, sweep):
    place = tmp_path / "here"
    place.mkdir()
    where = ("-m", "seed=0", "hydra.sweep.dir=run") if sweep else ("hydra.run.dir=run",)
    folder = place / "run" / "0" if sweep else place / "run"
    child = begin(place, *where, *LONG, out=os.devnull, err=os.devnull)
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
        os.kill(child, signal.SIGKILL)
        finish(child)
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


@cases(output=["out.jsonl", "out.parquet", None])
def test_a_second_stream_into_the_same_output_is_refused(tmp_path, run, output):
    if output == "out.parquet":
        pytest.importorskip("pyarrow")
    place, rows = tmp_path / "here", tmp_path / "rows.jsonl"
    place.mkdir()
    rows.write_text(as_json(make_rows(6, 2)))
    given, said = {} if output else {"out": place / "all.jsonl"}, tmp_path / "said"

    def stream(state, stdin, err=said):
        wanted = ["job=stream", f"run={run}", f"job.state={state}", *([f"job.output={output}"] if output else [])]
        return begin(place, *wanted, given=stdin, err=err, **given)

    reading, feeding = os.pipe()
    first = stream("a", reading, err=os.devnull)
    try:
        os.write(feeding, rows.read_bytes())
        waited_for(place / (output or "a/delivered"))
        waited_for(place / "a" / "state.sqlite")
        if output != "out.parquet":
            end = time.monotonic() + 60
            while not (place / (output or "all.jsonl")).stat().st_size:
                assert time.monotonic() < end
                time.sleep(0.01)
        with open(str(rows), "rb") as file:
            code = finish(stream("b", file.fileno()))
        text = said.read_text(encoding="utf-8")
        assert code == 1 and text.splitlines()[-1].startswith("error: "), text
        assert "that no other job writes to" in text and not (place / "b").exists()
    finally:
        os.kill(first, signal.SIGKILL)
        finish(first)
        os.close(reading)
        os.close(feeding)
    with open(str(rows), "rb") as file:
        code = finish(stream("a", file.fileno()))
    assert code == 0, said.read_text(encoding="utf-8")
    if output != "out.parquet":
        assert [row["row"] for row in parse((place / (output or "all.jsonl")).read_text())] == list(range(1, 7))

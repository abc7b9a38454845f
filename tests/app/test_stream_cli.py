"""``python -m app job=stream`` in processes of its own: pipes, files, signals and real kills."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from app_runs import ROOT, run_app
from myfla.testing import cases
from streams import as_csv, as_json, check, make_rows, make_run, parse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "trained")


def start(folder, run, *arguments, **pipes):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "app", "job=stream", f"run={run}", *arguments], cwd=str(folder),
                            env=environment, **pipes)


def pipe(folder, run, text, *arguments):
    """Through standard input and output, to the end."""
    with start(folder, run, *arguments, stdin=-1, stdout=-1, stderr=-1) as process:
        out, said = process.communicate(text.encode(), timeout=300)
    return process.returncode, out.decode(), said.decode()


def test_a_pipe_in_and_a_pipe_out(tmp_path, run):
    rows = make_rows(40, 5)
    text = as_json(rows[:20]) + "nonsense\n" + as_json(rows[20:])
    code, out, said = pipe(tmp_path, run, text, "job.emit=embedding")
    assert code == 0, said
    found = parse(out)
    assert [row["row"] for row in found] == [*range(1, 21), *range(22, 42)]
    check(run, rows, [{**row, "row": i} for i, row in enumerate(found, 1)])
    assert "line 21: Expecting value" in said and "40 rows, 1 malformed" in said and "outside the model" in said
    figures = json.loads((run / "stream_state" / "figures.json").read_text())
    assert figures["rows"] == 40 and figures["malformed"] == 1
    code, out, said = pipe(tmp_path, run, text, "job.emit=embedding")
    assert code == 0 and not out and "rows up to 41 are done" in said and "nothing was new" not in said


def test_a_csv_file_to_a_file_and_to_parquet(tmp_path, run):
    rows = make_rows(40, 5)
    (tmp_path / "in.csv").write_text(as_csv(rows))
    done = run_app(tmp_path, "job=stream", f"run={run}", "job.input=in.csv", "job.output=out.jsonl", "job.state=a")
    assert done.returncode == 0 and not done.stdout, done.stderr
    check(run, rows, parse((tmp_path / "out.jsonl").read_text()), emit="prediction", first=2)
    pq = pytest.importorskip("pyarrow.parquet")
    done = run_app(tmp_path, "job=stream", f"run={run}", "job.input=in.csv", "job.output=out.parquet", "job.state=b")
    assert done.returncode == 0 and not done.stdout, done.stderr
    (part,) = (tmp_path / "out.parquet").iterdir()
    check(run, rows, pq.read_table(part).to_pylist(), emit="prediction", first=2)


def test_settings_of_the_run_are_refused_on_the_command_line(tmp_path):
    done = run_app(tmp_path, "job=stream", "run=nothing", "encoder=rwkv7")
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert "error: encoder must be left out with job=stream; got 'encoder=rwkv7'; they come from the run" in done.stderr


def test_a_job_whose_reader_leaves_goes_on_later(tmp_path, run):
    rows = make_rows(3000, 7)
    arguments = (f"job.state={tmp_path / 'state'}", "job.emit=embedding", "job.batch_rows=100", "job.commit_seconds=0")
    (tmp_path / "in").write_text(as_json(rows))
    with open(str(tmp_path / "in"), "rb") as source:
        process = start(tmp_path, run, *arguments, stdin=source, stdout=-1, stderr=-1)
        head = process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(300) == 1 and "standard output was closed by its reader" in said, said
        process.stderr.close()
    code, out, said = pipe(tmp_path, run, as_json(rows), *arguments)
    assert code == 0, said
    found = parse(out)
    assert parse(head.decode())[0]["row"] == 1 and found[-1]["row"] == 3000
    got = [row["row"] for row in found]
    assert got == list(range(got[0], 3001))  # from the first that the pipe did not take on


def test_asked_to_stop_it_commits_and_ends_well(tmp_path, run):
    state = tmp_path / "state"
    process = start(tmp_path, run, f"job.state={state}", "job.emit=embedding", stdin=-1, stdout=-1, stderr=-1)
    rows = make_rows(20, 3)
    process.stdin.write(as_json(rows[:8]).encode())
    process.stdin.flush()
    first = b"".join(process.stdout.readline() for _ in range(8))  # the answers come without any more input
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0 and not out and b"8 rows" in said, said
    code, rest, said = pipe(tmp_path, run, as_json(rows), f"job.state={state}", "job.emit=embedding")
    assert code == 0, said
    check(run, rows, parse(first.decode() + rest))


def kill_and_restart(tmp_path, run, rows, kills, arguments, deliver, seed=0):
    """SIGKILL at random times after the start; every restart is sent everything again."""
    draw, done, rounds = random.Random(seed), 0, 0
    while done < kills:
        rounds += 1
        assert rounds < 4 * kills + 20
        with deliver() as (stdin, stdout):
            process = start(tmp_path, run, *arguments, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
            state = tmp_path / "state" / "state.sqlite-wal"
            limit = time.monotonic() + 120
            while not state.exists() and process.poll() is None and time.monotonic() < limit:
                time.sleep(0.005)  # imports take most of a life; kills shall hit the work
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, 0.5))
            process.kill()
            said = process.stderr.read().decode()
            code = process.wait(60)
            process.stderr.close()
            assert code in (0, -signal.SIGKILL), said
            done += code != 0
            if code == 0:
                return done
    with deliver() as (stdin, stdout):
        process = start(tmp_path, run, *arguments, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        said = process.stderr.read().decode()
        assert process.wait(300) == 0, said
        process.stderr.close()
    return done


class files:
    """The input from a file, the output at the end of another, as a shell does with ``< in >> out``."""

    def __init__(self, source, target):
        self.source, self.target = source, target

    def __enter__(self):
        self.opened = [open(str(self.source), "rb"), open(str(self.target), "ab")]
        return self.opened

    def __exit__(self, *error):
        for file in self.opened:
            file.close()


def assert_kills_change_nothing(tmp_path, run, count, kills, how):
    rows = make_rows(count, 40, seed=2)
    source, target = tmp_path / "in.jsonl", tmp_path / ("out.parquet" if how == "parquet" else "out.jsonl")
    source.write_text(as_json(rows))
    (tmp_path / "sink").write_text("")
    arguments = ["job.emit=embedding", f"job.state={tmp_path / 'state'}", "job.batch_rows=16",
                 "job.commit_seconds=0.005", "job.snapshot_seconds=0.1", "job.memory_mb=0.02"]
    if how == "stdout":
        deliver = lambda: files(source, target)  # noqa: E731
    else:
        arguments += [f"job.input={source}", f"job.output={target}"]
        deliver = lambda: files(os.devnull, tmp_path / "sink")  # noqa: E731
    done = kill_and_restart(tmp_path, run, rows, kills, arguments, deliver)
    assert done >= min(kills, 2)
    if how == "parquet":
        import pyarrow.parquet as pq

        found = [row for part in sorted(target.iterdir()) for row in pq.read_table(part).to_pylist()]
    else:
        found = parse(target.read_text())
    assert [row["row"] for row in found] == list(range(1, count + 1))
    check(run, rows, found)
    return done


def test_kills_lose_nothing_and_do_nothing_twice(tmp_path, run):
    assert_kills_change_nothing(tmp_path, run, 1000, 3, "stdout")


@pytest.mark.slow
@cases(how=["stdout", "file", "parquet"])
def test_fifty_kills_lose_nothing_and_do_nothing_twice(tmp_path, run, how):
    if how == "parquet":
        pytest.importorskip("pyarrow")
    assert assert_kills_change_nothing(tmp_path, run, 40000, 50, how) == 50

"""``job=encode``: every sequence once, with any number of processes and interruptions; the embeddings are the
encoder's."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from app.data import load_data
from app.data.japanese_vowels import FILES
from app.encoding.plan import Place, Plan, find_place
from app.errors import DataError, RunError
from app.jobs import encode as job
from app.jobs import run_job
from app_runs import ROOT, compose_app, run_app
from cfg.validation import ConfigError
from encoders import load_encoder
from encoders.training.encode import encode
from encoders.training.trained import load_trained
from myfla.models.sealed_file import read_sealed
from myfla.testing import cases
from runs import untrained

TEST = FILES / "JapaneseVowels_TEST.ts"
COUNT = 370


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "trained", "data=ts", f"data.train_path={TEST}",
                     f"data.test_path={TEST}")


@pytest.fixture(scope="module")
def truth(run):
    """Embedding and hidden states of every sequence, each encoded by itself."""
    trained = load_trained(run)
    found = []
    with torch.no_grad():
        for x in load_data(trained.config.data).test.sequences:
            out = trained.encoder(trained.pipeline.transform(x)[None])
            found.append((out.embedding[0], out.hidden[0]))
    return found


def start(tmp_path, run, *overrides):
    output = f"job.output={tmp_path / 'out'}"
    config = compose_app(["job=encode", f"run={run}", output, "trainer.threads=1", *overrides])
    run_job(config, tmp_path)
    return tmp_path / "out"


def read_parts(folder):
    """``{sequence: embedding or rows}`` from any format; a sequence that is there twice is an error."""
    found = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        tensors, facts = read_sealed(path, "myfla.embeddings", ValueError)
        sizes = tensors["lengths"].tolist()
        rows = tensors["embeddings"].split(sizes) if facts["per_step"] else tensors["embeddings"]
        for number, row in enumerate(rows, facts["first"]):
            assert number not in found
            found[number] = row
    for path in sorted(folder.glob("part-*.parquet")):
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
        for row in rows:
            value = torch.tensor(row["embedding"])
            if "step" in row:
                steps = found.setdefault(row["sequence"], [])
                assert row["step"] == len(steps)
                steps.append(value)
            else:
                assert row["sequence"] not in found
                found[row["sequence"]] = value
    return {number: torch.stack(row) if isinstance(row, list) else row for number, row in found.items()}


def assert_all_there(folder, truth, per="sequence"):
    found = read_parts(folder)
    assert list(found) == list(range(len(truth)))
    for number, pair in enumerate(truth):
        torch.testing.assert_close(found[number], pair[per == "step"], rtol=1e-4, atol=1e-5)
    assert json.loads((folder / "done.json").read_text())["sequences"] == len(truth)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@cases(form=["parquet", "safetensors"], per=["sequence", "step"])
def test_embeddings_are_those_of_each_sequence_alone(tmp_path, run, truth, form, per):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = start(tmp_path, run, f"job.format={form}", f"job.per={per}", "job.part_sequences=101", "job.batch_tokens=200")
    assert_all_there(out, truth, per)
    assert len(list(out.glob("part-*"))) == 4


def test_the_public_encoder_gives_the_same_of_raw_rows(tmp_path, run):
    found = read_parts(start(tmp_path, run, "job.format=safetensors"))
    raw = load_data(load_trained(run).config.data).test.sequences
    for form in (list(raw), [x.tolist() for x in raw]):
        assert torch.equal(load_encoder(run).encode(form), torch.stack(list(found.values())))


def test_a_start_makes_only_what_is_missing(tmp_path, run, truth, monkeypatch):
    made = []

    def watch(encoder, data, span, *rest):
        made.append(span.start)
        if len(made) == 3:
            raise KeyboardInterrupt
        return encode(encoder, data, span, *rest)

    monkeypatch.setattr(job, "encode", watch)
    arguments = ("job.format=safetensors", "job.part_sequences=80")
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, run, *arguments)
    assert not (tmp_path / "out" / "done.json").exists()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert len(first) == 2
    out = start(tmp_path, run, *arguments)
    assert made == [0, 80, 160, 160, 240, 320]
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert_all_there(out, truth)
    start(tmp_path, run, *arguments)
    assert len(made) == 6, "nothing was missing"


@cases(world=[2, 3])
def test_processes_share_the_parts_and_a_lone_one_finishes_them(tmp_path, run, truth, monkeypatch, world, capsys):
    arguments = ("job.format=safetensors", "job.part_sequences=60")
    for rank in range(world - 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        out = start(tmp_path, run, *arguments)
        assert "not complete yet" in capsys.readouterr().out and not (out / "done.json").exists()
        there = sorted(int(path.stem[5:]) for path in out.glob("part-*"))
        assert there == [part for part in range(7) if part % world <= rank]
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert_all_there(start(tmp_path, run, *arguments), truth)


def launch(folder, run, **environment):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    arguments = ["job=encode", f"run={run}", "job.output=out", f"job.input={TEST}", "job.format=safetensors",
                 "job.part_sequences=10", "job.batch_tokens=100", "trainer.threads=1"]
    return subprocess.Popen([sys.executable, "-m", "app", *arguments], cwd=str(folder), stdout=-1, stderr=-1,
                            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment})


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_two_processes_one_of_them_killed_lose_nothing_and_do_nothing_twice(tmp_path, run, truth):
    pair = [launch(tmp_path, run, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    limit = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("part-*"))) < 3 and pair[1].poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    pair[1].send_signal(signal.SIGKILL)
    said = [process.communicate(timeout=300)[1].decode() for process in pair]
    assert pair[0].returncode == 0, said[0]
    assert pair[1].returncode in (-signal.SIGKILL, 0)
    again = launch(tmp_path, run, RANK="1", WORLD_SIZE="2")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0 and b"is complete" in out, err.decode()
    assert_all_there(tmp_path / "out", truth)


@cases(form=["csv", "parquet"])
def test_a_table_without_labels_in_another_order_keeps_its_names(tmp_path, form):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    draw = torch.Generator().manual_seed(0)
    rows = [{"id": f"s{i % 7}", "t": i // 7, "a": float(x), "b": float(y), "kind": i % 7 % 2}
            for i, (x, y) in enumerate(torch.randn(70, 2, generator=draw).tolist())]
    write = pa.csv.write_csv if form == "csv" else pa.parquet.write_table
    write(pa.Table.from_pylist(rows), tmp_path / f"train.{form}")
    names = ["t", "b", "id", "a"]
    write(pa.Table.from_pylist([{name: row[name] for name in names} for row in rows[::-1]]), tmp_path / f"new.{form}")
    run = untrained(tmp_path / "run", "data=table", f"data.train_path={tmp_path / f'train.{form}'}", "data.sequence=id",
                    "data.time=t", "data.label=kind")
    out = start(tmp_path, run, f"job.input={tmp_path / f'new.{form}'}", "job.format=parquet")
    trained = load_trained(run)
    for row in pa.parquet.read_table(out / "part-00000000.parquet").to_pylist():
        x = torch.tensor([[r["a"], r["b"]] for r in rows if r["id"] == row["name"]])
        with torch.no_grad():
            want = trained.encoder(trained.pipeline.transform(x)[None]).embedding[0]
        torch.testing.assert_close(torch.tensor(row["embedding"]), want, rtol=1e-4, atol=1e-5)
        assert row["steps"] == 10 and row["name"] == f"s{6 - row['sequence']}", "rows came from the end"


def own_table(folder, layout, sequences=40, groups=4):
    """A table whose row groups hold ten rows or so, and what it holds: ``{name: [T, 2]}``."""
    import pyarrow as pa
    import pyarrow.parquet

    draw = torch.Generator().manual_seed(1)
    data = {f"s{i}": torch.randn(1 + i % 5, 2, generator=draw) for i in range(sequences)}
    if layout == "lists":
        rows = [{"a": x[:, 0].tolist(), "b": x[:, 1].tolist()} for x in data.values()]
    else:
        rows = [{"id": name, "a": a, "b": b} for name, x in data.items() for a, b in x.tolist()]
        rows = rows if layout == "long" else rows[1::2] + rows[::2]
        data = {row["id"]: [] for row in rows}
        for row in rows:
            data[row["id"]].append([row["a"], row["b"]])
    table = pa.Table.from_pylist(rows)
    (folder / "table").mkdir()
    half = len(rows) // 2
    for name, part in (("1", table[:half]), ("2", table[half:])):
        pa.parquet.write_table(part, folder / "table" / f"{name}.parquet", row_group_size=-(-half // groups))
    return folder / "table", [torch.tensor(x) if isinstance(x, list) else x for x in data.values()]


@cases(layout=["long", "mixed", "lists"])
def test_a_process_reads_the_row_groups_of_its_own_sequences(tmp_path, monkeypatch, layout):
    pytest.importorskip("pyarrow")
    from app.data.tables.parquet import ArrowBlock

    table, want = own_table(tmp_path, layout)
    sequence = [] if layout == "lists" else ["data.sequence=id", "data.ids=global"]
    run = untrained(tmp_path / "run", "data=table", f"data.train_path={table}", *sequence, "data.features=[a,b]",
                    "job.objective=next_step", "encoder.direction=causal")
    read = []
    how = "lists" if layout == "lists" else "numbers"
    original = getattr(ArrowBlock, how)
    monkeypatch.setattr(ArrowBlock, how, lambda self, name: read.append(self.rows) or original(self, name))
    trained, rows = load_trained(run), []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        read.clear()
        out = start(tmp_path, run, f"job.input={table}", "job.format=safetensors", "job.part_sequences=10")
        rows.append(sum(read))
    found = read_parts(out)
    assert list(found) == list(range(40))
    for number, x in enumerate(want):
        with torch.no_grad():
            alone = trained.encoder(trained.pipeline.transform(x)[None]).embedding[0]
        torch.testing.assert_close(found[number], alone, rtol=1e-4, atol=1e-5)
    whole = 2 * (2 * 40 if layout == "lists" else sum(map(len, want)))  # of lists, first the lengths
    if layout == "mixed":
        assert min(rows) > whole * 0.8, "rows that stand anywhere are in every group"
    else:
        assert all(whole * 0.4 < count < whole * 0.8 for count in rows), (rows, whole)


def test_token_runs_encode_text(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox " * 40)
    run = untrained(tmp_path / "run", "data=text", f"data.train_path={tmp_path}", "data.window=50",
                    "job.objective=next_step", "encoder.direction=causal")
    out = start(tmp_path, run, f"job.input={tmp_path / 'text.txt'}", "job.format=safetensors", "job.per=step")
    found = read_parts(out)
    trained = load_trained(run)
    with torch.no_grad():
        want = trained.encoder(torch.tensor([list(b"the quick brown fox " * 40)[50:101]])).hidden[0]
    torch.testing.assert_close(found[1], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("override", "key"), [
    ("job.part_sequences=7", "part_sequences was 500 and is 7 now"),
    ("job.per=step", "per was 'sequence' and is 'step' now"),
    ("job.part=train", "part was 'test' and is 'train' now"),
])
def test_a_start_with_other_settings_is_refused_and_changes_nothing(tmp_path, run, override, key):
    out = start(tmp_path, run, "job.format=safetensors", "job.part_sequences=500")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunError, match="job.output must be a new folder or that of an earlier start with the same"
                       f" settings; got .*, where {key}; choose another job.output"):
        start(tmp_path, run, "job.format=safetensors", "job.part_sequences=500", override)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_another_input_or_a_folder_of_something_else_is_refused(tmp_path, run):
    source = tmp_path / "in.ts"
    source.write_bytes(TEST.read_bytes())
    start(tmp_path, run, "job.format=safetensors", f"job.input={source}")
    text = source.read_text().splitlines(keepends=True)
    source.write_text("".join(text[:-1]))
    with pytest.raises(RunError, match=r"where input was .* and is .* now"):
        start(tmp_path, run, "job.format=safetensors", f"job.input={source}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"job.output must be a new folder or that of an earlier .* no encode.json"):
        start(tmp_path, run, "job.format=safetensors", f"job.output={tmp_path / 'other'}")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_nothing_is_written_for_input_that_cannot_be_read(tmp_path, run):
    (tmp_path / "empty.ts").write_text("")
    for path, message in ((tmp_path / "none.ts", "none.ts"), (tmp_path / "empty.ts", "empty.ts")):
        with pytest.raises(DataError, match=message):
            start(tmp_path, run, f"job.input={path}", "job.format=safetensors")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_its_extra(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(RunError, match=r"job.format=parquet needs the package 'pyarrow'; pip install '.*\[parquet\]'"):
        start(tmp_path, run)


@pytest.mark.parametrize(("given", "place"), [
    ({}, Place(0, 1)), ({"RANK": "3", "WORLD_SIZE": "8"}, Place(3, 8)),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Place(1, 2)),
    ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "9"}, Place(0, 2)),
])
def test_the_place_of_a_process_comes_from_torchrun_or_slurm(given, place):
    assert find_place(given) == place


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_half_a_place_is_refused(given):
    with pytest.raises(RunError, match="RANK and WORLD_SIZE must be the number of this process and how many there are"):
        find_place(given)


@cases(sequences=[0, 1, 7, 8, 9], size=[1, 4, 100], world=[1, 2, 5])
def test_every_sequence_is_in_one_part_of_one_process(tmp_path, sequences, size, world):
    plan = Plan(tmp_path, {"sequences": sequences, "part_sequences": size, "format": "safetensors"})
    mine = [part for rank in range(world) for part in plan.missing(Place(rank, world))]
    assert sorted(i for part in mine for i in plan.span(part)) == list(range(sequences))


def test_the_command_refuses_settings_of_the_run(tmp_path):
    with pytest.raises(ConfigError, match="run must be the folder of a finished run; got None"):
        run_job(compose_app(["job=encode", "job.output=out"]), tmp_path)
    done = run_app(tmp_path, "job=encode", "run=.", "job.output=out", "encoder=rwkv7")
    assert done.returncode == 1 and "error: encoder must be left out with job=encode" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("override", "message"), [
    ("job.per=word", "job.per must be one of sequence, step; got 'word'"),
    ("job.format=csv", "job.format must be one of parquet, safetensors"),
    ("job.part=all", "job.part must be one of test, train"),
    ("job.part_sequences=0", "job.part_sequences must be an integer from 1"),
    ("job.batch_tokens=0", "job.batch_tokens must be an integer from 1"),
])
def test_every_rule_names_its_key(override, message):
    with pytest.raises(ConfigError) as caught:
        compose_app(["job=encode", "job.output=x", override])
    assert str(caught.value).startswith(message)

"""Sinks: what is delivered, and what a restart makes of what a kill left."""

import json
import os
import struct

import numpy as np
import pytest
import torch

from app.errors import RunError
from app.streaming.parquet import ParquetSink
from app.streaming.sinks import FileSink, Output, StdoutSink, json_lines
from app.streaming.store import Store
from myfla.testing import cases
from streams import Crash


def output(first, count, kind="embedding", width=4):
    lines, names = np.arange(first, first + count), [f'a"{i}é' for i in range(count)]
    if kind == "embedding":
        return Output(lines, names, lines * 2, embedding=np.random.default_rng(first).normal(
            size=(count, width)).astype(np.float32))
    shares = np.array([[0.7, 0.3]] * count, np.float32)
    return Output(lines, names, lines * 2, classes=["x\n"] * count, probability=shares[:, 0], probabilities=shares,
                  names=["x\n", '50 % "y"'])


def commit(store, sink, final=False):
    again = True
    while again:
        store.put("sink", sink.stage(store))
        store.commit()
        again = sink.release(store, final)


@cases(kind=["embedding", "prediction"])
def test_lines_are_json_that_gives_every_float_back(kind):
    given = output(5, 30, kind)
    found = [json.loads(line) for line in json_lines(given).decode().splitlines()]
    assert [row["row"] for row in found] == given.lines.tolist() and [r["session"] for r in found] == given.sessions
    assert [row["step"] for row in found] == given.steps.tolist()
    if kind == "embedding":
        assert np.array_equal(np.array([row["embedding"] for row in found], np.float32), given.embedding)
    else:
        assert {row["prediction"] for row in found} == {"x\n"}
        assert np.array_equal(np.array([row["probability"] for row in found], np.float32), given.probability)
        shares = np.array([[row["probabilities"][name] for name in given.names] for row in found], np.float32)
        assert np.array_equal(shares, given.probabilities)


def test_a_file_is_cut_back_to_the_last_commit(tmp_path):
    store, path = Store(tmp_path / "state", {}), tmp_path / "deep" / "out.jsonl"
    sink = FileSink(path, None)
    sink.add(output(1, 3))
    commit(store, sink)
    kept = path.read_bytes()
    sink.add(output(4, 900))
    assert len(path.read_bytes()) > len(kept)
    with pytest.raises(RunError, match=r"job.output must be a file that no other job writes to; got .*end the other"):
        FileSink(path, store.get("sink"))
    sink._file.close()  # as a kill does
    sink = FileSink(path, store.get("sink"))
    assert path.read_bytes() == kept
    sink.add(output(4, 1))
    commit(store, sink)
    sink.close()
    assert path.read_bytes() == kept + json_lines(output(4, 1))


def test_files_of_others_and_shortened_ones_are_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(RunError, match=r"job.output must be a new file or the one of this state; .* has 9 bytes of"):
        FileSink(path, None)
    with pytest.raises(RunError, match=r"job.output must be a new file"):
        FileSink(path, {"kind": "file", "path": str(tmp_path / "other"), "length": 9})
    own = {"kind": "file", "path": str(path.resolve()), "length": 10}
    with pytest.raises(RunError, match=r"must hold what was written to it; got .* with 9 bytes of 10; put it back"):
        FileSink(path, own)
    assert path.read_text() == "precious\n"
    path.unlink()
    FileSink(path, own).close()  # moved away: a new one begins
    with pytest.raises(RunError, match=r"job.output must be a file that can be written; .*regular file, not a folder"):
        FileSink(tmp_path, None)


class Wire:
    """A descriptor that crashes at a chosen write, before or after it took the bytes."""

    def __init__(self, monkeypatch, at, taken):
        self.got, self.count, self.at, self.taken = b"", 0, at, taken
        monkeypatch.setattr("app.streaming.sinks.os.write", self.write)

    def write(self, descriptor, data):
        self.count += 1
        if self.count == self.at:
            if self.taken:
                self.got += bytes(data)
            raise Crash
        self.got += bytes(data)
        return len(data)


@cases(at=range(1, 7), taken=[False, True])
def test_a_kill_at_any_write_loses_nothing_and_repeats_at_most_a_piece(tmp_path, monkeypatch, at, taken):
    read, pipe = os.pipe()
    wire = Wire(monkeypatch, at, taken)
    outputs = [output(1, 100), output(101, 60), output(161, 5)]
    want = b"".join(map(json_lines, outputs))
    store, crashes, left = Store(tmp_path, {}), 0, outputs
    while True:
        sink = StdoutSink(tmp_path, store.get("sink"), pipe)
        try:
            sink.release(store)
            while left:
                sink.add(left[0])
                store.put("sink", sink.stage(store))
                store.commit()
                left = left[1:]
                sink.release(store)
            commit(store, sink, final=True)
            break
        except Crash:
            crashes += 1
            store._db.close()
            store = Store(tmp_path, {})
    assert crashes == 1 and not store.outbox()
    lines = wire.got.splitlines(keepends=True)
    rows = [json.loads(line)["row"] for line in lines]
    unique = [line for i, line in enumerate(lines) if rows[i] > max([0, *rows[:i]])]
    assert b"".join(unique) == want
    repeated = sum(len(line) for line in lines) - len(want)
    assert repeated == 0 if not taken else 0 < repeated <= StdoutSink.PIECE
    store.close()
    os.close(read), os.close(pipe)


@cases(piece=[1, 40, 4096])
def test_pieces_are_whole_lines(tmp_path, monkeypatch, piece):
    pieces = []
    monkeypatch.setattr("app.streaming.sinks.os.write", lambda fd, data: pieces.append(bytes(data)) or len(data))
    monkeypatch.setattr(StdoutSink, "PIECE", piece)
    read, pipe = os.pipe()
    store, sink = Store(tmp_path, {}), StdoutSink(tmp_path, None, pipe)
    for kind in ("prediction", "embedding"):
        sink.add(output(1, 70, kind))
    commit(store, sink)
    assert len(pieces) > 2 and all(part.endswith(b"\n") for part in pieces)
    assert all(len(part) <= piece or part.count(b"\n") == 1 for part in pieces)
    store.close()
    os.close(read), os.close(pipe)


def test_half_a_line_in_a_file_is_completed(tmp_path, monkeypatch):
    """A kill in the middle of a write to a regular file: its size tells how far it came."""
    path, given = tmp_path / "out", output(1, 50)
    path.write_bytes(b"before\n")
    store, file = Store(tmp_path, {}), os.open(str(path), os.O_WRONLY | os.O_APPEND)
    sink, write = StdoutSink(tmp_path, None, file), os.write

    def half(descriptor, data):
        write(descriptor, data[: len(data) // 2])
        raise Crash

    monkeypatch.setattr("app.streaming.sinks.os.write", half)
    sink.add(given)
    with pytest.raises(Crash):
        commit(store, sink)
    monkeypatch.undo()
    again = StdoutSink(tmp_path, store.get("sink"), file)
    again.release(store)
    assert path.read_bytes() == b"before\n" + json_lines(given)
    commit(store, again, final=True)
    assert not store.outbox()
    os.close(file)
    store.close()


def test_a_new_file_gets_only_what_the_old_one_did_not(tmp_path):
    store = Store(tmp_path, {})
    for number in (1, 2):
        file = os.open(str(tmp_path / f"out{number}"), os.O_WRONLY | os.O_CREAT)
        sink = StdoutSink(tmp_path, store.get("sink"), file)
        sink.release(store)
        sink.add(output(10 * number, 3))
        commit(store, sink)
        os.close(file)
        assert (tmp_path / f"out{number}").read_bytes() == json_lines(output(10 * number, 3))
    store.close()


def test_a_note_of_earlier_output_promises_nothing(tmp_path):
    (tmp_path / "delivered").write_bytes(struct.pack("<Q", 1 << 40))
    read, pipe = os.pipe()
    store, sink = Store(tmp_path, {}), StdoutSink(tmp_path, None, pipe)
    sink.add(output(1, 2))
    store.put("sink", sink.stage(store))
    store.commit()
    StdoutSink(tmp_path, store.get("sink"), pipe).release(store)
    assert os.read(read, 9999) == json_lines(output(1, 2))
    store.close()
    os.close(read), os.close(pipe)


def read_parts(folder):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parts = sorted(folder.glob("part-*.parquet"))
    assert len(list(folder.glob("part-*"))) == len(parts)
    return [len(pq.read_table(part)) for part in parts], pyarrow.concat_tables([pq.read_table(p) for p in parts])


@cases(kind=["embedding", "prediction"])
def test_parquet_holds_what_json_holds(tmp_path, kind):
    pytest.importorskip("pyarrow")
    store, sink = Store(tmp_path / "state", {}), ParquetSink(tmp_path / "out.parquet", None, part_rows=10)
    given = [output(1, 7, kind), output(8, 7, kind), output(15, 2, kind)]
    for one in given:
        sink.add(one)
        commit(store, sink)
    assert read_parts(tmp_path / "out.parquet")[0] == [14] and len(store.outbox()) == 1
    commit(store, sink, final=True)
    sizes, table = read_parts(tmp_path / "out.parquet")
    assert sizes == [14, 2] and not store.outbox()
    want = [json.loads(line) for one in given for line in json_lines(one).decode().splitlines()]
    for row in want:
        row.update({f"probability {name}": share for name, share in row.pop("probabilities", {}).items()})
    assert table.column_names == list(want[0])
    for name in want[0]:
        got, column = table[name].to_pylist(), [row[name] for row in want]
        if name.startswith(("embedding", "probability")):
            assert torch.equal(torch.tensor(got), torch.tensor(column))
        else:
            assert got == column
    store.close()


@cases(crash=["write", "rename", "commit"])
def test_a_part_without_its_commit_is_made_again(tmp_path, monkeypatch, crash):
    pytest.importorskip("pyarrow")
    folder, store = tmp_path / "out.parquet", Store(tmp_path / "state", {})
    sink = ParquetSink(folder, None, part_rows=5)
    sink.add(output(1, 6))
    commit(store, sink)
    sink.add(output(7, 6))

    def fail(*args):
        raise Crash

    target = {"write": "app.streaming.parquet.os.fsync", "rename": "app.streaming.parquet.os.replace",
              "commit": "app.streaming.store.Store.delivered"}[crash]
    with pytest.raises(Crash):
        store.put("sink", sink.stage(store))
        store.commit()
        monkeypatch.setattr(target, fail)
        again = sink.release(store)
        assert again
        sink.stage(store)
    monkeypatch.undo()
    assert len(list(folder.glob("*part-*"))) == 2
    store._db.close()
    store = Store(tmp_path / "state", {})
    with pytest.raises(RunError, match=r"job.output must be a folder that no other job writes to; got .*end the other"):
        ParquetSink(folder, store.get("sink"), part_rows=5)
    sink._lock._file.close()  # as a kill does
    sink = ParquetSink(folder, store.get("sink"), part_rows=5)
    assert read_parts(folder)[0] == [6]
    sink.add(output(13, 1))
    commit(store, sink, final=True)
    sizes, table = read_parts(folder)
    assert sizes == [6, 7] and table["row"].to_pylist() == list(range(1, 14))
    store.close()


def test_a_folder_of_other_parts_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "part-00000001.parquet").write_text("precious")
    with pytest.raises(RunError, match=r"job.output must be a new folder or the one of this state; .* has "
                       r"part-0000000"):
        ParquetSink(tmp_path, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"job.output must be a folder that can be written; got .*File exists"):
        ParquetSink(tmp_path / "file", None)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(RunError, match=r"needs the package 'pyarrow'; pip install 'myfla\[parquet\]', or leave out"):
        ParquetSink(tmp_path / "x.parquet", None)

"""Data and streams in pieces of any size: where a piece ends changes nothing."""

import pytest
import torch

from app.streaming import engine, lines, store
from app.streaming.lines import open_file
from encoders import pipeline
from encoders.pipeline import InputPipeline
from myfla.testing import cases
from streams import as_json, check, make_rows, make_run, parse, serve


@cases(size=[1, 4, 7, 1000], missing=[False, True])
def test_means_and_deviations_are_those_of_all_steps(size, missing, monkeypatch):
    sequences = [100 + 3 * torch.randn(length, 2) for length in (1, 5, 2, 9)]
    if missing:
        sequences[1][2, 0] = float("nan")
    monkeypatch.setattr(pipeline, "_BLOCK", size)
    found = InputPipeline.fit(sequences, missing="mean")
    whole = torch.cat(sequences).double()
    for channel in range(2):
        column = whole[:, channel][~whole[:, channel].isnan()]
        assert found.mean[channel] == pytest.approx(float(column.mean()), rel=1e-12)
        assert found.std[channel] == pytest.approx(float(column.std(unbiased=False)), rel=1e-12)


@cases(size=[1, 2, 3, 7, 100])
def test_lines_are_those_of_the_file(size, tmp_path, monkeypatch):
    text = b"one\n\ntwo\r\n" + b"x" * 40 + b"\n\xc3\xa4 end"
    (tmp_path / "in").write_bytes(text)
    monkeypatch.setattr(lines, "CHUNK", size)
    monkeypatch.setattr(lines, "LONGEST", 30)
    found = open_file(tmp_path / "in").take(100, wait=True)
    assert [line.data for line in found] == [b"one", b"", b"two", None, b"\xc3\xa4 end"]
    assert sum(line.size for line in found) == len(text)


@cases(size=[1, 3])
def test_sessions_written_and_fetched_a_few_at_a_time_go_on(size, tmp_path, monkeypatch):
    for module, name in ((engine, "BLOCK"), (store, "_MANY"), (lines, "CHUNK")):
        monkeypatch.setattr(module, name, size)
    run, rows = make_run(tmp_path / "run"), make_rows(60, 9)
    outputs = []
    for part in range(2):  # the second begins with the states that the first one wrote
        (tmp_path / "in.jsonl").write_text(as_json(rows[: 30 * (part + 1)]))
        serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out.jsonl", batch_rows=16)
        outputs = parse((tmp_path / "out.jsonl").read_text())
    check(run, rows, outputs)

"""The stream as a whole: values, order, eviction, and every place at which a kill can come."""

import json
import re

import pytest
import torch

from app.errors import RunError
from app.jobs import run_job
from app.streaming.engine import Engine
from app.streaming.lines import open_file
from app.streaming.model import load_model
from app.streaming.parquet import ParquetSink
from app.streaming.service import Service
from app.streaming.store import Store
from app_runs import compose_app
from cfg.stream import StreamJobConfig
from myfla.testing import cases
from streams import Crash, as_csv, as_json, check, make_rows, make_run, parse, serve, truth

NAMES = ("gated_deltanet", "rwkv7")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder / name, name) for name in NAMES}


def state_bytes(run):
    model = load_model(run, "embedding")
    return sum(t.numel() * t.element_size() for t in model.fresh)


@cases(name=[*NAMES, "inception"], how=[("mean", 1), ("mean", 4096), ("last", 7), ("max", 7), ("attention", 7)])
def test_every_row_has_the_value_of_its_session_seen_whole(tmp_path, name, how):
    pooling, batch = how
    run, rows = make_run(tmp_path / "run", name, pooling=pooling), make_rows(40, 9)
    (tmp_path / "in.jsonl").write_text(as_json(rows))
    out = tmp_path / "out.jsonl"
    figures = serve(run, tmp_path / "in.jsonl", tmp_path / "state", out, batch_rows=batch)
    check(run, rows, parse(out.read_text()))
    assert figures["rows"] == 40 and figures["malformed"] == 0
    assert figures["sessions_in_memory"] == len({session for session, _ in rows}) > 5


@cases(name=NAMES)
def test_predictions_are_those_of_the_classifier(tmp_path, runs, name):
    rows = make_rows(50, 5)
    (tmp_path / "in.csv").write_text(as_csv(rows))
    serve(runs[name], tmp_path / "in.csv", tmp_path / "state", tmp_path / "out", emit="prediction", batch_rows=9)
    check(runs[name], rows, parse((tmp_path / "out").read_text()), emit="prediction", first=2)


@cases(name=NAMES)
def test_an_encoder_without_a_head_gives_embeddings(tmp_path, name):
    run, rows = make_run(tmp_path / "run", name, torch.float64, head=False), make_rows(40, 4)
    (tmp_path / "in.jsonl").write_text(as_json(rows))
    serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")
    check(run, rows, parse((tmp_path / "out").read_text()), rms=1e-7)


@cases(name=NAMES, room=[1, 3])
def test_idle_sessions_go_to_disk_and_come_back(tmp_path, runs, name, room):
    rows = make_rows(60, 8)
    (tmp_path / "in.jsonl").write_text(as_json(rows))
    figures = serve(runs[name], tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out",
                    memory=room * state_bytes(runs[name]), batch_rows=5)
    check(runs[name], rows, parse((tmp_path / "out").read_text()))
    assert figures["sessions_in_memory"] <= room and figures["evicted"] > 10 and figures["returned"] > 10


def test_a_file_that_grew_goes_on_where_it_was_left(tmp_path, runs):
    run, rows, path = runs["rwkv7"], make_rows(90, 6), tmp_path / "in.csv"
    for end in (30, 30, 61, 90):
        path.write_text(as_csv(rows[:end]))
        figures = serve(run, path, tmp_path / "state", tmp_path / "out", batch_rows=8)
    assert figures["rows"] == 29
    check(run, rows, parse((tmp_path / "out").read_text()), first=2)


def test_sessions_go_on_in_another_file(tmp_path, runs):
    run, rows = runs["gated_deltanet"], make_rows(40, 4)
    for number, part in enumerate((rows[:15], rows[15:])):
        (tmp_path / f"{number}.jsonl").write_text(as_json(part))
        serve(run, tmp_path / f"{number}.jsonl", tmp_path / "state", tmp_path / "out")
    found = parse((tmp_path / "out").read_text())
    assert [out["row"] for out in found] == [*range(1, 16), *range(1, 26)]
    for out, (session, step, embedding) in zip(found, truth(run, rows)):
        assert (out["session"], out["step"]) == (session, step)
        assert torch.allclose(torch.tensor(out["embedding"]), embedding, rtol=1e-4, atol=1e-5)


def test_malformed_rows_are_named_and_lose_nothing(tmp_path, runs):
    run, rows, said = runs["gated_deltanet"], make_rows(30, 3), []
    lines = as_json(rows).splitlines()
    lines[10:10] = ["", "nonsense", '{"session": "s1", "features": [1, 2]}']
    lines.insert(20, '{"session": "s1", "features": [1, 2, NaN]}')
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    figures = serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out", said=said, batch_rows=6)
    found = parse((tmp_path / "out").read_text())
    assert [text.split(":")[0] for text in said] == ["line 12", "line 13", "line 21"]
    assert "features must be 3 numbers; got 2; the line is skipped" in said[1]
    assert [out["row"] for out in found] == [*range(1, 11), *range(14, 21), *range(22, 35)]
    check(run, rows, [{**out, "row": i} for i, out in enumerate(found, 1)])
    assert figures["malformed"] == 3 and figures["rows"] == 30


def test_another_file_of_the_same_name_is_refused(tmp_path, runs):
    run, path = runs["gated_deltanet"], tmp_path / "in.jsonl"
    path.write_text(as_json(make_rows(20, 3)))
    serve(run, path, tmp_path / "state", tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    for rows in (make_rows(20, 3, seed=1), make_rows(19, 3)):
        path.write_text(as_json(rows))
        with pytest.raises(RunError, match=r"job.input must be the file that was read before, or a longer .* line 20"):
            serve(run, path, tmp_path / "state", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == before


def test_rows_sent_again_are_known_by_their_number(tmp_path, monkeypatch, runs):
    """Standard input after a restart: from the beginning, from some row on, or from the next one."""
    run, rows, said = runs["gated_deltanet"], make_rows(30, 5), []

    def send(text, **settings):
        (tmp_path / "in").write_text(text)
        monkeypatch.setattr("app.streaming.service.open_stdin", lambda: open_file(tmp_path / "in"))
        return serve(run, None, tmp_path / "state", tmp_path / "out", batch_rows=4, said=said, **settings)["rows"]

    assert send(as_csv(rows[:12])) == 12
    for text, number in ((as_csv(make_rows(30, 5, seed=1)), 1), (as_csv(rows), 3)):
        with pytest.raises(RunError, match=r"job.first_row must number the rows as before; got another row 13 than"):
            send(text, first_row=number)
    with pytest.raises(RunError, match=r"job.first_row must be at most 14, the next row; got 15: the rows between"):
        send(as_csv(rows), first_row=15)
    assert send(as_csv(rows)[: len(as_csv(rows[:15]))]) == 3
    assert "rows up to 13 are done and are skipped if they come again" in said
    assert send(as_csv(rows[8:20]), first_row=10) == 5
    assert send(as_csv(rows[:3])) == 0
    assert said[-1].startswith("the input ended at row 4, before row 21, the last that is done: nothing was new")
    assert send(as_csv(rows[20:]), first_row="next") == 10
    check(run, rows, parse((tmp_path / "out").read_text()), first=2)


@cases(wrong=[(["job=stream"], "run must be the folder of a finished run; got None; python -m"),
              (["job=stream", "run=nothing"], "run must be the folder of a finished run; got 'nothing', which is no"),
              (["job=stream", "job.emit=all"], "job.emit must be one of prediction, embedding; got 'all'"),
              (["job=stream", "job.format=xml"], "job.format must be one of auto, jsonl, csv; got 'xml'"),
              (["job=stream", "job.first_row=0"], "job.first_row must be an integer from 1, or next; got 0"),
              (["job=stream", "job.first_row=2", "job.input=a"], "job.first_row must be left out with job.input; got"),
              (["job=stream", "job.features=[a,a]"], "job.features must be different names, none of them job.session="),
              (["job=stream", "job.features=[]"], "job.features must be a list of names or null; got []"),
              (["job=stream", "job.batch_rows=0"], "job.batch_rows must be an integer from 1"),
              (["job=stream", "job.memory_mb=0"], "job.memory_mb must be a finite number above 0"),
              (["job=stream", "job.commit_seconds=-1"], "job.commit_seconds must be a finite number from 0"),
              (["job=stream", "job.snapshot_seconds=nan"], "job.snapshot_seconds must be a finite number from 0"),
              (["job=stream", "job.threads=0"], "job.threads must be an integer from 1 to 1024 or null; got 0"),
              (["job=stream", "job.session=' '"], "job.session must be a non-empty string"),
              (["job=stream", "run=' '"], "run must be a non-empty string or null")])
def test_settings_that_break_a_rule_are_named(tmp_path, wrong):
    overrides, reason = wrong
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        run_job(compose_app(overrides), tmp_path)


class Kills:
    """Ends the job at the n-th thing it does that outlives it: commits, writes, renames, evictions."""

    PLACES = ("app.streaming.store.Store.commit", "app.streaming.store.Store.keep", "app.streaming.store.Store.forget",
              "app.streaming.store.Store.note", "app.streaming.sinks.os.fsync", "app.streaming.parquet.os.replace",
              "app.streaming.parquet.ParquetSink.release", "app.streaming.engine.Engine._advance")

    def __init__(self, monkeypatch):
        self.count, self.at, self.after = 0, 0, False
        for place in self.PLACES:
            monkeypatch.setattr(place, self._wrap(_resolve(place)))

    def _wrap(self, function):
        def wrapped(*args, **kwargs):
            self.count += 1
            now = self.count == self.at
            if now and not self.after:
                raise Crash
            result = function(*args, **kwargs)
            if now:
                raise Crash
            return result

        return wrapped


def _resolve(place):
    import importlib

    parts = place.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found


def _kill_everywhere(tmp_path, monkeypatch, run, rows, kind, every):
    """One job for each place and moment; each is started again until it ends; all must give the same."""
    path = tmp_path / "in.jsonl"
    path.write_text(as_json(rows))
    room = 4 * state_bytes(run)
    kills, outputs, after, at = Kills(monkeypatch), [], False, 0
    while True:
        at += every
        folder = tmp_path / f"{at}-{after}"
        crashes, ended = 0, False
        while not ended:
            kills.count, kills.at, kills.after = 0, at if crashes < 2 else 0, after
            out = folder / ("out.parquet" if kind == "parquet" else "out.jsonl")
            sink = None if kind != "parquet" else (
                lambda store, out=out: ParquetSink(out, store.get("sink"), part_rows=13))
            try:
                serve(run, path, folder / "state", out, sink, memory=room, batch_rows=6, commit_seconds=0,
                      snapshot_seconds=0 if at % 2 else 1e6)
                ended = True
            except Crash:
                crashes += 1
        if kind == "parquet":
            import pyarrow.parquet as pq

            parts = [pq.read_table(part).to_pylist() for part in sorted(out.iterdir())]
            found = [row for part in parts for row in part]
        else:
            found = parse(out.read_text())
        outputs.append(found)
        if not crashes:  # beyond the last thing it does
            if after:
                return outputs
            after, at = True, 0


@cases(kind=["jsonl", "parquet"])
def test_a_kill_anywhere_changes_nothing(tmp_path, monkeypatch, runs, kind):
    """Killed twice at every n-th step, in memory for four sessions of eight; then compared row by row."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    rows = make_rows(30, 8, seed=3)
    outputs = _kill_everywhere(tmp_path, monkeypatch, runs["gated_deltanet"], rows, kind, every=7)
    assert len(outputs) > 8
    for found in outputs:
        check(runs["gated_deltanet"], rows, found)


@pytest.mark.slow
@cases(name=NAMES, kind=["jsonl", "parquet"])
def test_a_kill_at_every_single_step_changes_nothing(tmp_path, monkeypatch, runs, name, kind):
    rows = make_rows(60, 12, seed=4)
    outputs = _kill_everywhere(tmp_path, monkeypatch, runs[name], rows, kind, every=1)
    assert len(outputs) > 100
    for found in outputs:
        check(runs[name], rows, found)


def test_after_a_kill_only_rows_since_the_snapshot_are_repeated(tmp_path, monkeypatch, runs):
    run, rows = runs["gated_deltanet"], make_rows(60, 5)
    (tmp_path / "in.jsonl").write_text(as_json(rows))
    kills = Kills(monkeypatch)
    monkeypatch.setattr(Kills, "PLACES", [])
    kills.at = 60
    with pytest.raises(Crash):
        serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out", batch_rows=4, commit_seconds=0)
    store = Store(tmp_path / "state", {"model": load_model(run, "embedding").key})
    done = store.position(str((tmp_path / "in.jsonl").resolve())).row
    store.close()
    assert 0 < done < 60
    figures = serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out", batch_rows=4)
    assert figures["repeated"] == done and figures["rows"] == 60 - done
    check(run, rows, parse((tmp_path / "out").read_text()))
    again = serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")
    assert again["rows"] == again["repeated"] == 0


def test_a_stop_ends_after_the_step_at_hand(tmp_path, runs):
    run, rows = runs["gated_deltanet"], make_rows(40, 5)
    (tmp_path / "in.jsonl").write_text(as_json(rows))

    class Stopping(list):
        def append(self, text):
            pass

    model = load_model(run, "embedding")
    store = Store(tmp_path / "state", {"model": model.key})
    from app.streaming.sinks import FileSink

    sink = FileSink(tmp_path / "out", None)
    config = StreamJobConfig(input=str(tmp_path / "in.jsonl"), emit="embedding", batch_rows=10)
    service = Service(config, store, Engine(model, store, 1 << 30, "embedding"), sink, print)
    step = service.engine.step
    service.engine.step = lambda rows: setattr(service, "stopping", True) or step(rows)
    assert service.run()["rows"] == 10
    sink.close()
    store.close()
    assert serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")["rows"] == 30
    check(run, rows, parse((tmp_path / "out").read_text()))


@cases(change=["bidirectional", "vocabulary", "headless", "nothing", "empty", "damaged", "other head"])
def test_a_run_that_cannot_stream_is_refused_with_the_reason(tmp_path, change):
    run = tmp_path / "run"
    if change == "bidirectional":
        make_run(run, direction="bidirectional")
        reason = "must hold an encoder that can be fed in pieces; got encoder.direction=bidirectional: it has to know"
    elif change == "vocabulary":
        make_run(run, vocab_size=7, head=False)
        reason = "must hold an encoder of real-valued features; got encoder.vocab_size=7"
    elif change == "headless":
        make_run(run, head=False)
        reason = "must hold task.safetensors for job.emit=prediction; got no such file; use job.emit=embedding"
    elif change == "nothing":
        reason = "run must be the folder of a finished run; got "
    elif change == "empty":
        run.mkdir()
        reason = "must hold an intact encoder; load_encoder: "
    elif change == "damaged":
        make_run(run)
        (run / "task.safetensors").write_bytes((run / "task.safetensors").read_bytes()[:-1])
        reason = "must hold an intact encoder; myfla.task file"
    else:
        make_run(run)
        make_run(tmp_path / "other", hidden_size=16).joinpath("encoder.json").replace(run / "encoder.json")
        (tmp_path / "other" / "encoder.safetensors").replace(run / "encoder.safetensors")
        reason = "'head.weight': [3, 16]}; got {'head.bias': [3], 'head.weight': [3, 8]"
    with pytest.raises(RunError) as caught:
        load_model(run, "prediction")
    assert reason in str(caught.value), str(caught.value)


def test_states_of_other_weights_are_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text(as_json(make_rows(9, 3)))
    serve(make_run(tmp_path / "a"), tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")
    with pytest.raises(RunError, match=r"job.state=.* must belong to this run; its model is"):
        serve(make_run(tmp_path / "b", seed=1), tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")


def test_figures_add_up(tmp_path, runs):
    (tmp_path / "in.jsonl").write_text(as_json(make_rows(200, 20)))
    figures = serve(runs["rwkv7"], tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")
    assert 0 < figures["model_seconds"] < figures["busy_seconds"] and 0 < figures["outside_model"] < 1
    assert figures["rows_per_s"] == pytest.approx(200 / figures["busy_seconds"], rel=0.01)
    assert json.loads(json.dumps(figures)) == figures

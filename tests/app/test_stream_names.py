"""Streams find features by name, and give what the run was trained to predict: classes or values, of a sequence or of a
step."""

import json

import pytest
import torch

from app.errors import RunError
from app.streaming.lines import Line
from app.streaming.rows import Reader, header_features, json_reader
from encoders import InputSchema, load_encoder
from encoders.schema import Column
from encoders.training.tasks.spec import TaskSpec
from encoders.training.trained import load_trained
from myfla.testing import assert_close, cases, raises
from streams import CLASSES, make_rows, make_run, parse, serve

SCHEMA = InputSchema((Column("x"), Column("y"), Column("z")), time=Column("t"), roles=(("label", "class"),),
                     left_out=(Column("note", "string", "text"),))
SPECS = {"classes": TaskSpec("classify", "classes", len(CLASSES), False, CLASSES),
         "steps": TaskSpec("classify", "classes", len(CLASSES), True, CLASSES),
         "values": TaskSpec("regress", "values", 2, False, ["50%", 'a "b"']),
         "values a step": TaskSpec("regress", "values", 1, True, ["v"]),
         "next": TaskSpec("next_step", "values", 3, True)}


def as_csv(rows, order):
    places = {"x": 0, "y": 1, "z": 2}

    def cell(name, session, features):
        return session if name == "session" else repr(features[places[name]]) if name in places else "?"

    lines = [",".join(order)] + [",".join(cell(name, *row) for name in order) for row in rows]
    return "\n".join(lines) + "\n"


def answers(tmp_path, run, text, name, **settings):
    (tmp_path / name).write_text(text)
    serve(run, tmp_path / name, tmp_path / f"state-{name}", tmp_path / f"{name}.out", **settings)
    return (tmp_path / f"{name}.out").read_text()


@cases(kind=list(SPECS))
def test_every_kind_of_run_answers_as_of_the_whole_sequence(tmp_path, kind):
    run, rows = make_run(tmp_path / "run", spec=SPECS[kind], schema=SCHEMA), make_rows(30, 5)
    text = as_csv(rows, ["session", "x", "y", "z"])
    got = parse(answers(tmp_path, run, text, "a.csv", emit="prediction", batch_rows=7))
    encoder, task, pipeline = load_encoder(run), load_trained(run).task, load_trained(run).pipeline
    sessions, want = {}, []
    for session, features in rows:
        seen = sessions.setdefault(session, [])
        seen.append(features)
        out = encoder(torch.tensor([seen], dtype=torch.float64))
        want.append(task.head(out.hidden[0, -1] if SPECS[kind].per_step else out.embedding[0]).detach().double())
    flat = torch.stack(want)
    if SPECS[kind].kind == "classes":
        share, index = flat.softmax(-1).max(-1)
        assert [row["prediction"] for row in got] == [CLASSES[i] for i in index.tolist()]
        assert_close(torch.tensor([row["probability"] for row in got]).double(), share, rms=1e-5)
        return
    flat = pipeline.untransform(flat) if kind == "next" else flat * task.target_std + task.target_mean
    names = ["x", "y", "z"] if kind == "next" else SPECS[kind].names
    assert [list(row["prediction"]) for row in got] == [names] * 30
    assert_close(torch.tensor([list(row["prediction"].values()) for row in got], dtype=torch.float64), flat, rms=1e-5)


def test_any_order_and_form_of_the_same_names_gives_the_same_bytes(tmp_path):
    run, rows = make_run(tmp_path / "run", schema=SCHEMA), make_rows(20, 4)
    want = answers(tmp_path, run, as_csv(rows, ["session", "x", "y", "z"]), "a.csv")
    for number, order in enumerate((["z", "session", "y", "x"], ["note", "y", "t", "z", "session", "class", "x", ""])):
        assert answers(tmp_path, run, as_csv(rows, order), f"{number}.csv") == want
    assert answers(tmp_path, run, as_csv(rows, ["w", "z", "x", "y", "session"]), "w.csv", ignore=["w"]) == want
    assert answers(tmp_path, run, as_csv(rows, ["z", "x", "y", "session"]), "f.csv", features=["y", "z", "x"]) == want
    objects = [{"z": f[2], "session": s, "note": "text", "x": f[0], "y": f[1]} for s, f in rows]
    inside = [{"session": s, "features": {"y": f[1], "x": f[0], "z": f[2]}, "more": 1} for s, f in rows]
    listed = [{"session": s, "features": f} for s, f in rows]
    for name, lines in (("flat", objects), ("inside", inside), ("listed", listed)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        # the header of a CSV file is its first row
        got = [{**row, "row": row["row"] + 1} for row in parse(answers(tmp_path, run, text, f"{name}.jsonl"))]
        assert got == parse(want), name


@cases(case=[
    ("session,x,y", "got no 'z'; add them, or rename the columns; or choose the columns, in the run's order, with job"),
    ("session,x,y,z,w", "got unknown 'w'; skip what is not a feature with job.ignore=[w]; or choose"),
    ("session,x,y,z,z", "must have different names; got 'z' twice"),
])
def test_a_header_that_does_not_fit_is_refused(case):
    header, reason = case
    with raises(RunError, "job.input: columns must", reason):
        header_features(header, "session", SCHEMA, [])


@cases(case=[
    ('{"session": "a", "x": 1, "y": 2}', "the object must have the run's feature 'z'; got ['session', 'x', 'y']"),
    ('{"session": "a", "x": 1, "y": 2, "z": 3, "w": 4}',
     "must have no keys but the session and the run's features; got 'w'; skip it with job.ignore"),
    ('{"session": "a", "features": {"x": 1, "y": 2, "w": 4}}', "the run's feature 'z'"),
    ('{"x": 1, "y": 2, "z": 3}', "the object must have 'session'"),
])
def test_an_object_that_does_not_fit_is_left_out_with_the_reason(case):
    line, reason = case
    said = []
    reader = Reader(json_reader("session", None, SCHEMA), 3, lambda number, why: said.append(why))
    rows = reader([Line(line.encode(), 0), Line(b'{"session": "b", "z": 3, "y": 2, "x": 1}', 0)], 1)
    assert rows.sessions == ["b"] and rows.features.tolist() == [[1, 2, 3]]
    assert len(said) == 1 and reason in said[0]


def test_values_go_to_parquet_by_name(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    from app.streaming.parquet import ParquetSink

    run, rows = make_run(tmp_path / "run", spec=SPECS["values"], schema=SCHEMA), make_rows(10, 3)
    (tmp_path / "in.csv").write_text(as_csv(rows, ["session", "x", "y", "z"]))
    serve(run, tmp_path / "in.csv", tmp_path / "state", None, emit="prediction",
          sink=lambda store: ParquetSink(tmp_path / "out.parquet", store.get("sink")))
    lines = parse(answers(tmp_path, run, as_csv(rows, ["session", "x", "y", "z"]), "b.csv", emit="prediction"))
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [[row[f"predicted {name}"] for name in SPECS["values"].names] for row in table] == [
        pytest.approx(list(line["prediction"].values()), rel=1e-12) for line in lines]

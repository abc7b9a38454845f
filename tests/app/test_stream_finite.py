"""Rows too large for the model, results that are not finite, and missing values: named, filled, and never passed on."""

import json

import numpy as np
import pytest
import torch

from app.errors import DataError, RunError
from app.streaming.engine import Engine
from app.streaming.limits import USUAL, fill_from
from app.streaming.model import load_model
from app.streaming.rows import Rows
from app.streaming.store import Store
from encoders import load_encoder
from encoders.pipeline import InputPipeline
from encoders.training.data.prepared import Prepared
from encoders.training.data.sequences import SequenceSet
from encoders.training.encode import check_finite_rows
from myfla.testing import cases, raises
from streams import WIDTH, as_csv, as_json, check, make_rows, make_run, parse, serve

NAMES = ("gated_deltanet", "rwkv7", "gru", "inception")
HUGE = (3e38, -3e38, 1e20, 2.5e19)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder / name, name) for name in NAMES}


def strict(text):
    """JSON without the words that Python adds to it."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@cases(name=NAMES, emit=["embedding", "prediction"], batch=[1, 7, 4096])
def test_a_row_that_is_too_large_is_named_and_leaves_its_session_as_it_was(tmp_path, runs, name, emit, batch):
    run, rows, said = runs[name], make_rows(40, 5), []
    lines = as_json(rows).splitlines()
    for place, value in zip((4, 9, 10, 30), HUGE):
        lines.insert(place, json.dumps({"session": "s1", "features": [value] * WIDTH}))
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    figures = serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out", emit=emit, batch_rows=batch,
                    said=said)
    assert [text.split(":")[0] for text in said] == ["line 5", "line 10", "line 11", "line 31"]
    assert "features must not be too large for the model; got 3e+38; the line is skipped" in said[0]
    assert figures["malformed"] == 4 and figures["rows"] == 40
    found = strict((tmp_path / "out").read_text())
    check(run, rows, [{**out, "row": number} for number, out in enumerate(found, 1)], emit=emit)


def test_what_is_only_large_is_taken(tmp_path, runs):
    """An unusually large row gets the same result as in the whole sequence."""
    rows = [("a", [1e6] * WIDTH), ("a", [0.5, 1, 2]), ("b", [-3e9, 1, 1])]
    (tmp_path / "in.jsonl").write_text(as_json(rows))
    figures = serve(runs["gated_deltanet"], tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")
    assert figures["malformed"] == 0 and USUAL < 1e6
    check(runs["gated_deltanet"], rows, strict((tmp_path / "out").read_text()))


class Failing:
    """A model whose answer to chosen rows is not finite, and whose states are spoilt by them."""

    def __init__(self, model, marks):
        self._model, self._marks = model, marks

    def __getattr__(self, name):
        return getattr(self._model, name)

    def advance(self, x, counts, seen, states):
        hidden, embedding, states = self._model.advance(x, counts, seen, states)
        bad = torch.isin(x[:, 0], torch.tensor(self._marks, dtype=x.dtype))
        owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        for session in owner[bad].unique().tolist():
            for state in states:
                state[session] = float("nan")
        last = torch.full((len(counts),), -1).scatter_reduce(
            0, owner, torch.where(bad, torch.arange(len(x)), len(x)), "amin", include_self=False)
        spoilt = torch.arange(len(x)) >= last[owner]
        return hidden, torch.where(spoilt[:, None], torch.full_like(embedding, float("nan")), embedding), states


@cases(batch=[1, 5, 40], snapshot=[False, True], room=[2, 100])
def test_a_result_that_is_not_finite_is_undone(tmp_path, runs, batch, snapshot, room):
    """Whatever the reason: the rows before and behind give what they give without it, other sessions as well."""
    run = runs["gated_deltanet"]
    model, rows, marks = load_model(run, "embedding"), make_rows(40, 4), [77.0, 78.0]
    given = [*rows[:11], ("s1", [77.0, 0, 0]), *rows[11:12], ("s1", [78.0, 1, 1]), ("new", [77.0, 1, 1]), *rows[12:]]
    store, said, found = Store(tmp_path / "state", {"model": "m"}), [], []
    each = sum(t.numel() * t.element_size() for t in model.fresh)
    engine = Engine(Failing(model, marks), store, room * each, "embedding", lambda *what: said.append(what))
    with torch.inference_mode():
        for start in range(0, len(given), batch):
            part = given[start : start + batch]
            lines = np.arange(start + 1, start + len(part) + 1)
            found += engine.step(Rows(lines, [s for s, _ in part], np.array([f for _, f in part], np.float64)))
            if snapshot:
                engine.snapshot()
            store.put("seq", engine.seq)
            store.commit()
    store.close()
    assert [line for line, _ in said] == [12, 14, 15] and engine.refused == 3
    assert all("the result must be finite" in reason and "the session is unchanged" in reason for _, reason in said)
    made = [{"session": s, "step": int(n), "embedding": e.tolist()} for one in found
            for s, n, e in zip(one.sessions, one.steps, one.embedding)]
    check(run, rows, [{**out, "row": number} for number, out in enumerate(made, 1)])
    again = Engine(model, Store(tmp_path / "state", {"model": "m"}), 1 << 30, "embedding")
    with torch.inference_mode():
        again.repeat()
        (out,) = again.step(Rows(np.array([1]), ["s1"], np.array([rows[0][1]])))
    again.store.close()
    assert np.isfinite(out.embedding).all() and int(out.steps[0]) == sum(s == "s1" for s, _ in rows) + 1


def with_gaps(count, seed=0):
    draw = np.random.default_rng(seed)
    return [(session, [None if draw.random() < 0.3 else x for x in features]) for session, features in
            make_rows(count, 4, seed)]


def whole(run, rows):
    """The encoder's output for every prefix of every session, missing values treated as in training."""
    encoder = load_encoder(run)
    sessions, found = {}, []
    for session, features in rows:
        sessions.setdefault(session, []).append([float("nan") if x is None else x for x in features])
        with torch.no_grad():
            found.append(encoder(torch.tensor([sessions[session]], dtype=torch.float64)).embedding[0])
    return torch.stack(found)


@cases(name=NAMES[:2], missing=["mean", "forward"], form=["jsonl", "csv"], batch=[1, 6, 100])
def test_missing_values_are_treated_as_in_training(tmp_path, name, missing, form, batch):
    run = make_run(tmp_path / "run", name, missing=missing)
    first = [(session, [0.1, -0.2, 0.3]) for session in ("s0", "s1", "s2", "s3")]  # nothing is missing at a beginning
    rows = [*first, *with_gaps(40)]
    text = as_json(rows) if form == "jsonl" else as_csv(rows).replace("None", "")
    (tmp_path / f"in.{form}").write_text(text)
    figures = {}
    for end in (21, None):  # two starts: what was last is kept
        (tmp_path / f"in.{form}").write_text("".join(text.splitlines(keepends=True)[:end]))
        figures = serve(run, tmp_path / f"in.{form}", tmp_path / "state", tmp_path / "out", batch_rows=batch)
    assert figures["malformed"] == 0
    found = torch.tensor([row["embedding"] for row in strict((tmp_path / "out").read_text())])
    assert torch.allclose(found, whole(run, rows).float(), rtol=1e-4, atol=1e-5)


def test_without_a_policy_a_missing_value_is_named_with_the_way_out(tmp_path, runs):
    said = []
    (tmp_path / "in.csv").write_text("session,a,b,c\ns,1,2,3\ns,1,,3\ns,1,nan,3\n")
    figures = serve(runs["rwkv7"], tmp_path / "in.csv", tmp_path / "state", tmp_path / "out", said=said)
    assert figures["rows"] == 1 and [text.split(":")[0] for text in said] == ["line 3", "line 4"]
    assert all("a run trained with data.missing=mean or data.missing=forward takes missing values" in text
               for text in said)
    assert len(parse((tmp_path / "out").read_text())) == 1


def test_filling_in_pieces_equals_filling_whole():
    draw = np.random.default_rng(3)
    x = torch.from_numpy(np.where(draw.random((30, 2)) < 0.5, np.nan, draw.normal(size=(30, 2))))
    want, _ = fill_from(x, torch.tensor([30]), torch.full((1, 2), float("nan")).double())
    for cut in range(1, 30):
        first, last = fill_from(x[:cut], torch.tensor([cut]), torch.full((1, 2), float("nan")).double())
        second, _ = fill_from(x[cut:], torch.tensor([30 - cut]), last)
        assert torch.equal(torch.cat([first, second]).nan_to_num(9), want.nan_to_num(9))


def test_large_numbers_that_differ_by_little_are_told_apart(tmp_path):
    """1.7e9 and 1.7e9 + 3 are one number in 32 bits."""
    run = make_run(tmp_path / "run", mean=1.7e9)
    rows = [("a", [1.7e9 - 1] * WIDTH), ("b", [1.7e9 + 1] * WIDTH)]
    (tmp_path / "in.jsonl").write_text(as_json(rows))
    serve(run, tmp_path / "in.jsonl", tmp_path / "state", tmp_path / "out")
    one, two = (torch.tensor(row["embedding"]) for row in strict((tmp_path / "out").read_text()))
    assert (one - two).abs().max() > 1e-2


@cases(value=[1e20, -3e38, 1e16])
def test_a_sequence_that_is_too_large_is_named_before_it_is_trained_on_or_encoded(value):
    large = torch.tensor([[0.0, 1], [0, value]]).double()
    data = SequenceSet([torch.zeros(4, 2).double(), large], torch.tensor([0, 1]))
    sequences = Prepared(data, InputPipeline.fit([torch.randn(50, 2)]))
    assert sequences[0].x.shape == (4, 2)
    with raises(DataError, "sequence 2, step 2, channel 2 must be below 1e+15 once it is standardised; got"):
        sequences[1]


def test_an_embedding_that_is_not_finite_is_never_written():
    with raises(RunError, "sequence 8: its embedding must be finite"):
        check_finite_rows([torch.zeros(3), torch.tensor([0.0, float("nan")])], range(6, 8))

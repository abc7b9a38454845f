"""Tables: every layout and format gives the sequences that were written, and errors name the damage."""

import datetime

import numpy as np
import pytest
import torch

from app.data import load_data, views
from app.errors import DataError
from cfg.data import TableDataConfig
from cfg.validation import ConfigError
from encoders.training.data.sequences import IGNORE
from myfla.testing import cases

pa = pytest.importorskip("pyarrow")
import pyarrow.csv  # noqa: E402
import pyarrow.parquet  # noqa: E402

NAMES = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"]


def subjects(seed=0):
    """Eight sequences of 1 to 9 steps of two channels, with a class, a number and a group each."""
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=(draw.integers(1, 10), 2)).astype(np.float32) for name in NAMES}


def long_table(shuffle=0):
    rows = [dict(id=name, t=t, x=float(v[0]), y=float(v[1]), kind="ab"[i % 2], score=i / 4, home=i // 2,
                 step="uv"[t % 2], fine=t / 8) for i, (name, steps) in enumerate(subjects().items())
            for t, v in enumerate(steps)]
    order = np.random.default_rng(shuffle).permutation(len(rows)) if shuffle else range(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order])


def list_table():
    rows = [dict(id=name, x=steps[:, 0].tolist(), y=steps[:, 1].tolist(), kind="ab"[i % 2], score=i / 4, home=i // 2,
                 step=["uv"[t % 2] for t in range(len(steps))], fine=[t / 8 for t in range(len(steps))])
            for i, (name, steps) in enumerate(subjects().items())]
    return pa.Table.from_pylist(rows)


def write(path, table):
    (pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table)(table, str(path))
    return str(path)


def everything(data):
    """All sequences of both parts with their targets, in an order of their own."""
    return sorted((part.sequences[i].tolist(), part.targets[i].tolist())
                  for part in (data.train, data.test) for i in range(len(part)))


LONG = dict(sequence="id", time="t", features=["x", "y"])


@cases(form=["csv", "parquet", "folder", "shuffled", "lists"],
       target=["label", "targets", "step label", "step targets"])
def test_every_layout_gives_the_same_sequences(tmp_path, form, target):
    settings = {"label": dict(label="kind"), "targets": dict(targets=["score"]),
                "step label": dict(label="step", per_step=True), "step targets": dict(targets=["fine"], per_step=True)}
    if form == "lists":
        path, layout = write(tmp_path / "a.parquet", list_table()), dict(features=["x", "y"])
    elif form == "folder":
        table = long_table(shuffle=1)
        for i in range(3):
            write(tmp_path / f"{i}.parquet", table.slice(i * 15, 15 if i < 2 else None))
        path, layout = str(tmp_path), dict(ids="global", **LONG)
    else:
        path = write(tmp_path / ("a.csv" if form == "csv" else "a.parquet"), long_table(shuffle=form == "shuffled"))
        layout = LONG
    data = load_data(TableDataConfig(train_path=path, test_fraction=0.3, **layout, **settings[target]))
    want = []
    for i, steps in enumerate(subjects().values()):
        value = {"label": i % 2, "targets": [i / 4], "step label": [t % 2 for t in range(len(steps))],
                 "step targets": [[t / 8] for t in range(len(steps))]}[target]
        want.append((steps.tolist(), value))
    assert everything(data) == sorted(want)
    assert data.classes == {"label": ["a", "b"], "step label": ["u", "v"]}.get(target)
    assert (data.input_size, data.per_step) == (2, target.startswith("step")) and len(data.test) >= 2


def test_groups_are_never_on_both_sides(tmp_path):
    path = write(tmp_path / "a.parquet", long_table())
    data = load_data(TableDataConfig(train_path=path, group="home", label="kind", **LONG))
    assert not set(data.train.groups.tolist()) & set(data.test.groups.tolist())
    assert len(set(data.train.groups.tolist())) == 3
    from encoders.training.data.module import SequenceDataModule

    module = SequenceDataModule(data, TableDataConfig(train_path=path, validation_fraction=0.4), seed=0)
    assert not set(module.train.groups.tolist()) & set(module.validation.groups.tolist())


def test_large_tables_lie_in_a_file_and_not_in_memory(tmp_path, monkeypatch):
    from app.data import table_parts as table

    made = []
    monkeypatch.setattr(views, "IN_MEMORY", 0)
    monkeypatch.setattr(table, "empty_array", lambda *args: made.append(views.empty_array(*args)) or made[-1])
    path = write(tmp_path / "a.parquet", long_table(shuffle=1))
    config = TableDataConfig(train_path=path, test_fraction=0.3, label="kind", scratch=str(tmp_path), **LONG)
    data = load_data(config)
    (values,) = made
    assert isinstance(values, np.memmap) and data.train.sequences.values.data_ptr() == values.ctypes.data
    assert {p.name for p in tmp_path.iterdir()} == {"a.parquet"}, "the file has no name that could be left behind"
    monkeypatch.undo()
    assert everything(data) == everything(load_data(config))


def test_blocks_smaller_than_a_sequence_change_nothing(tmp_path, monkeypatch):
    from app.data.tables import table as tables

    path = write(tmp_path / "a.parquet", long_table(shuffle=1))
    config = TableDataConfig(train_path=path, label="kind", **LONG)
    whole = everything(load_data(config))
    monkeypatch.setattr(tables, "BLOCK", 3)
    assert everything(load_data(config)) == whole


def test_features_are_all_columns_of_numbers_that_have_no_other_part(tmp_path):
    path = write(tmp_path / "a.csv", long_table())
    data = load_data(TableDataConfig(train_path=path, sequence="id", time="t", label="kind", group="home"))
    assert data.input_size == 4  # x, y, score, fine


def test_order_may_be_by_points_in_time_and_missing_values_may_stand(tmp_path):
    day = datetime.datetime(2024, 1, 1)
    rows = [dict(id="a", t=day + datetime.timedelta(hours=3 - i), x=float(i) if i else None) for i in range(3)]
    rows += [dict(id=name, t=day, x=9.0) for name in ("u", "v", "v2", "u2")]
    for row, kind in zip(rows, "uuuuvvu"):
        row["kind"] = kind
    table = pa.Table.from_pylist(rows)
    config = dict(train_path=write(tmp_path / "a.parquet", table), sequence="id", time="t", label="kind")
    with pytest.raises(DataError, match=r"row 1, column 'x' must be a finite number; got nan; set data.missing"):
        load_data(TableDataConfig(**config))
    data = load_data(TableDataConfig(missing="mean", **config))
    both = [part.sequences[i] for part in (data.train, data.test) for i in range(len(part))]
    found = [sequence for sequence in both if len(sequence) == 3]
    assert found[0].flatten()[:2].tolist() == [2.0, 1.0] and found[0][2].isnan()


def test_a_step_without_a_label_is_left_out(tmp_path):
    rows = [dict(id=str(i), t=t, x=0.5, step=None if t == 1 else "uv"[(i + t) % 2]) for i in range(4) for t in range(3)]
    path = write(tmp_path / "a.csv", pa.Table.from_pylist(rows))
    data = load_data(TableDataConfig(train_path=path, sequence="id", time="t", label="step", per_step=True))
    targets = torch.cat([data.train.targets[i] for i in range(len(data.train))])
    assert (targets == IGNORE).sum() == len(data.train) and set(targets.tolist()) == {IGNORE, 0, 1}


def change(table, column, row, value):
    rows = table.to_pylist()
    rows[row][column] = value
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(("damage", "settings", "reason"), [
    (lambda t: change(t, "x", 3, float("inf")), {}, "row 4, column 'x' must be a finite number; got inf"),
    (lambda t: change(t, "x", 3, 1e39), {}, "row 4, column 'x' must be finite in 32 bits; got 1e+39"),
    (lambda t: change(t, "id", 3, None), {}, "row 4, column 'id' must name a sequence"),
    (lambda t: change(t, "t", 3, None), {}, "row 4, column 't' must have a time"),
    (lambda t: change(t, "t", 1, 0), {}, "column 't' must not have the same time twice; got 0"),
    (lambda t: change(t, "kind", 1, "b"), {}, "column 'kind' must be the same in all its rows; got 'b'"),
    (lambda t: change(t, "score", 1, 7.0), dict(label=None, targets=["score"]),
     "column 'score' must be the same in all its rows; got 7.0; or set data.per_step=true"),
    (lambda t: change(t, "home", 1, 7), dict(group="home"), "column 'home' must be the same in all its rows"),
    (lambda t: t.slice(0, 0), {}, "rows must be at least one; got 0"),
    (lambda t: t, dict(features=["kind"], label=None), "column 'kind' must hold numbers"),
    (lambda t: t.append_column("n", pa.array([None] * len(t), pa.string())), dict(label="n"), "must have a value"),
])
def test_damage_is_named_by_row_and_column(tmp_path, damage, settings, reason):
    path = write(tmp_path / "a.parquet", damage(long_table()))
    with pytest.raises(DataError) as caught:
        load_data(TableDataConfig(train_path=path, **{**LONG, "label": "kind", **settings}))
    assert reason in str(caught.value) and "a.parquet" in str(caught.value)


@pytest.mark.parametrize(("settings", "reason"), [
    (dict(features=["x", "yy"]), "data.features must be a column of .*a.csv; got 'yy'; did you mean 'y'"),
    (dict(sequence="ident"), "data.sequence must be a column of .*; got 'ident'"),
    (dict(label="nothing like it"), "data.label must be a column .* it has id, t, x, y"),
    (dict(label="kind", targets=["score"]), "data.targets must be null with data.label=kind"),
    (dict(features=["x", "x"]), "data.features and the other columns must be different; got 'x'"),
    (dict(features=[]), "data.features must be a list of columns or null"),
    (dict(sequence=None), "data.time must be null without data.sequence"),
])
def test_a_setting_that_does_not_fit_is_named(tmp_path, settings, reason):
    path = write(tmp_path / "a.csv", long_table())
    with pytest.raises(ConfigError, match=reason):
        load_data(TableDataConfig(train_path=path, **{**LONG, **settings}))


@cases(damage=["missing", "empty", "header", "binary", "other", "mixed", "nothing", "text"])
def test_files_that_are_no_tables_are_refused(tmp_path, damage):
    path = tmp_path / "a.csv"
    content = {"empty": b"", "header": b"id,t,x,y\n", "binary": b"PAR1\x00\x01",
               "text": b"id,t,x,y\na,1,2,3\nb,2,u,3\n"}
    if damage in content:
        path = tmp_path / ("a.parquet" if damage == "binary" else "a.csv")
        path.write_bytes(content[damage])
    elif damage != "missing":
        path = tmp_path / "folder"
        path.mkdir()
        for name in {"other": ["a.xlsx"], "mixed": ["a.csv", "b.parquet"], "nothing": []}[damage]:
            (path / name).write_text("x\n1\n")
        path = path / "a.xlsx" if damage == "other" else path
    reasons = {"missing": "must be an existing CSV or Parquet file",
               "empty": "a.csv: file must have a header and rows; got '0 bytes'",
               "header": "rows must be at least one", "binary": "cannot be read as parquet",
               "other": "must be CSV or Parquet, by its name",
               "mixed": "must all be .csv", "nothing": "an empty folder",
               "text": "row 2, column .x. must hold numbers; got .u."}
    with pytest.raises(DataError, match=reasons[damage]):
        load_data(TableDataConfig(train_path=str(path), **LONG))


@cases(column=["y", "step"])
def test_lists_of_different_lengths_are_named(tmp_path, column):
    table = list_table()
    short = change(table, column, 2, table.to_pylist()[2][column][:-1])
    path = write(tmp_path / "a.parquet", short)
    reasons = {"y": "row 3, column 'y' must have .* steps as 'x' has", "step": "column 'step' must be lists as long"}
    with pytest.raises(DataError, match=reasons[column]):
        load_data(TableDataConfig(train_path=path, features=["x", "y"], label="step", per_step=True))
    with pytest.raises(DataError, match="column 'score' must hold lists, one for each sequence; got 'double'"):
        load_data(TableDataConfig(train_path=path, features=["score"]))


def test_a_label_missing_in_the_test_set_is_named_and_a_class_missing_there_is_not(tmp_path):
    train = write(tmp_path / "train.csv", long_table())
    rows = [{**row, "kind": None} if row["id"] == "bob" else row for row in long_table().to_pylist()]
    assert rows != long_table().to_pylist()
    bare = write(tmp_path / "bare.csv", pa.Table.from_pylist(rows))
    settings = {**LONG, "label": "kind"}
    with pytest.raises(DataError, match=r"bare.csv: sequence 'bob', column 'kind' must have a value; got None; give "
                       r"it"):
        load_data(TableDataConfig(train_path=train, test_path=bare, **settings))
    lists = write(tmp_path / "lists.parquet", list_table())
    gone = write(tmp_path / "gone.parquet", change(list_table(), "kind", 1, None))
    with pytest.raises(DataError, match=r"gone.parquet: row 2, column 'kind' must have a label; got None; give it one"):
        load_data(TableDataConfig(train_path=lists, test_path=gone, features=["x", "y"], label="kind"))
    one = write(tmp_path / "one.csv", long_table().filter(pa.compute.field("kind") == "a"))
    data = load_data(TableDataConfig(train_path=train, test_path=one, **settings))
    assert len(data.classes) > 1 and data.test.targets.unique().tolist() == [data.classes.index("a")]


def test_sequences_without_steps_one_class_and_new_classes_are_named(tmp_path):
    path = write(tmp_path / "a.parquet", change(change(list_table(), "x", 2, []), "y", 2, []))
    with pytest.raises(DataError, match="sequence 3 must have at least one step; got 0; remove it"):
        load_data(TableDataConfig(train_path=path, test_path=path, features=["x", "y"], label="kind"))
    whole = write(tmp_path / "b.parquet", list_table())
    one = write(tmp_path / "c.parquet", list_table().filter(pa.compute.field("kind") == "a"))
    with pytest.raises(DataError, match="training set must have sequences of at least two classes; got 'a'; there is"):
        load_data(TableDataConfig(train_path=one, test_path=one, features=["x", "y"], label="kind"))
    other = write(tmp_path / "d.parquet", change(list_table(), "kind", 0, "z"))
    with pytest.raises(DataError, match="test set must have only classes that the training set has; got 'z'"):
        load_data(TableDataConfig(train_path=whole, test_path=other, features=["x", "y"], label="kind"))

"""Training on data that cannot be learned from: a clear error, and no file is left or changed."""

import csv

import pytest

from app.errors import DataError
from app.jobs import run_job
from app_runs import compose_app
from cfg.validation import ConfigError
from myfla.testing import cases

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet  # noqa: E402

#: The change of the rows, the changed setting, and the message.
REFUSED = {
    "unknown column": (None, {"data.label": "kinds"}, ConfigError,
                       "data.label must be a column of .*got 'kinds'.*kind"),
    "empty file": (lambda rows: None, {}, DataError, "train.csv: file must have a header and rows; got .0 bytes"),
    "no rows": (lambda rows: [], {}, DataError, "train.csv: rows must be at least one; got 0"),
    "one class only": (lambda rows: [{**row, "kind": "a"} for row in rows], {}, DataError,
                       "training set must have sequences of at least two classes; got 'a'"),
    "NaN features": (lambda rows: [{**row, "x": "nan" if row["t"] == 3 else row["x"]} for row in rows], {}, DataError,
                     "column 'x' must be a finite number; got nan; set data.missing"),
}
COLUMNS = {"data.sequence": "id", "data.time": "t", "data.label": "kind"}


def rows():
    return [{"id": f"s{i}", "t": t, "x": i + t / 8, "kind": "ab"[i % 2]} for i in range(20) for t in range(5)]


def write(path, found):
    with open(str(path), "w", newline="") as file:
        if found is not None:
            writer = csv.DictWriter(file, list(rows()[0]))
            writer.writeheader()
            writer.writerows(found)


def refuse(tmp_path, settings, error, reason):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "run").mkdir()
    with pytest.raises(error, match=reason):
        run_job(compose_app(["data=table", *(f"{key}={value}" for key, value in settings.items())]), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@cases(what=list(REFUSED))
def test_what_is_refused_leaves_nothing(tmp_path, what):
    change, other, error, reason = REFUSED[what]
    write(tmp_path / "train.csv", rows() if change is None else change(rows()))
    refuse(tmp_path, {"data.train_path": tmp_path / "train.csv", **COLUMNS, **other}, error, reason)


def test_a_label_missing_in_the_test_set_leaves_nothing(tmp_path):
    write(tmp_path / "train.csv", rows())
    write(tmp_path / "test.csv", [{**row, "kind": "" if row["id"] == "s7" else row["kind"]} for row in rows()])
    paths = {"data.train_path": tmp_path / "train.csv", "data.test_path": tmp_path / "test.csv"}
    refuse(tmp_path, {**paths, **COLUMNS}, DataError,
           "test.csv: sequence 's7', column 'kind' must have a value; got None")


def test_a_sequence_without_steps_leaves_nothing(tmp_path):
    lists = [{"x": [] if i == 4 else [1.0, float(i)], "kind": "ab"[i % 2]} for i in range(20)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(lists), str(tmp_path / "train.parquet"))
    refuse(tmp_path, {"data.train_path": tmp_path / "train.parquet", "data.label": "kind"}, DataError,
           "sequence 5 must have at least one step; got 0")

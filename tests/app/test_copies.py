"""No column that reveals the answer is an input, in any layout and format, in training and afterwards."""

import csv
import logging

import pytest

from app.data import read_source
from app.jobs import run_job
from app_runs import compose_app
from cfg.data import TableDataConfig
from copy_cases import KINDS, LISTS, ROWS, VALUES
from encoders import InputError
from encoders.training.trained import load_trained
from myfla.testing import cases, raises
from runs import untrained


def write(path, columns):
    """The table, in the format of its name."""
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
        return path
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    return path


@cases(case=[(name, form) for name in ROWS for form in (".csv", ".parquet")] + [(name, "lists") for name in LISTS])
def test_what_tells_the_answer_is_left_out_with_a_word(tmp_path, caplog, case):
    name, form = case
    columns, settings, want = (LISTS if form == "lists" else ROWS)[name]
    path = write(tmp_path / f"a{'.parquet' if form == 'lists' else form}", columns)
    with caplog.at_level(logging.WARNING, "app.data"):
        data = read_source(TableDataConfig(train_path=str(path), **settings))
    said = [record.getMessage().replace(str(path), "DIR") for record in caplog.records]
    assert [*said, data.schema.describe()] == want.says
    if want.x is not None:
        found = [x.tolist() for x in data.train.sequences]
        assert [[row[0] for row in x] if data.input_size == 1 else x for x in found] == want.x


def predicted(folder, run, path, *more):
    output = folder / f"{path.stem}.out.csv"
    run_job(compose_app(["job=predict", f"run={run}", f"job.input={path}", f"job.output={output}", *more]), folder)
    return output.read_text().replace(path.name, "")


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    columns = {"kind": KINDS * 4, "low": [v[0] for v in VALUES] * 4, "code": [2.0, 7.0] * 12,
               "high": [v[1] for v in VALUES] * 4}
    return untrained(folder / "run", "data=table", "data.layout=wide", "data.label=kind",
                     f"data.train_path={write(folder / 'a.csv', columns)}")


def test_steps_of_a_row_go_by_name_and_copies_stay_out(tmp_path, wide_run):
    """With the label's copy, without it, and in another order: the same predictions."""
    low, high = [v[0] for v in VALUES], [v[1] for v in VALUES]
    assert load_trained(wide_run).pipeline.schema.steps == ("low", "high")
    tables = {"a": {"low": low, "high": high}, "b": {"high": high, "low": low},
              "c": {"code": [7.0] * 6, "high": high, "kind": KINDS, "low": low}}
    found = {predicted(tmp_path, wide_run, write(tmp_path / f"{name}.csv", one)) for name, one in tables.items()}
    assert len(found) == 1
    with raises(InputError, "x.csv: columns must be the model's 2 steps: low, high; got unknown 'age'; skip"):
        predicted(tmp_path, wide_run, write(tmp_path / "x.csv", {"low": low, "high": high, "age": low}))
    over = write(tmp_path / "y.csv", {"low": low, "age": low, "high": high})
    assert {predicted(tmp_path, wide_run, over, "job.ignore=[age]")} == found
    with raises(InputError, "x.csv: columns must be the model's 2 steps: low, high; got no 'high'; add them"):
        predicted(tmp_path, wide_run, write(tmp_path / "x.csv", {"low": low}))


@cases(case=[
    (["t0", "t1"], None), (["t2", "t0", "t1"], None), (["t0", "t1", "t2", "t3"], None),
    (["t0", "t2"], "got no 't1'"), (["t1", "t2"], "got no 't0'"), (["t0", "t1", "t2", "u"], "got unknown 'u'"),
    (["t00", "t0", "t1", "t2"], "got unknown 't00'"), (["a", "b"], "got no 't0', 't1', 't2', and unknown 'a', 'b'"),
])
def test_numbered_steps_may_be_fewer_or_more_but_have_no_hole(tmp_path, case):
    names, problem = case
    columns = {"kind": KINDS * 4, **{f"t{i}": [v[i % 2] * (i + 1) for v in VALUES] * 4 for i in range(3)}}
    run = untrained(tmp_path / "run", "data=table", "data.layout=wide", "data.label=kind",
                    f"data.train_path={write(tmp_path / 'a.csv', columns)}")
    path = write(tmp_path / "b.csv", {name: [1.5, 2.5] for name in names})
    if problem is None:
        assert predicted(tmp_path, run, path).count("\n") == 3
    else:
        with raises(InputError, f"b.csv: columns must be the model's 3 steps: t0, t1, t2; {problem}"):
            predicted(tmp_path, run, path)


def test_a_process_that_reads_some_rows_of_lists_has_all_names(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import numpy as np
    import pyarrow.parquet as pq

    names = [f"s{i}" for i in range(9)]
    pq.write_table(pa.table({"id": names, "x": [[float(i)] * 2 for i in range(9)]}), tmp_path / "a.parquet",
                   row_group_size=2)
    config = TableDataConfig(train_path=str(tmp_path / "a.parquet"), sequence="id", layout="lists")
    data = read_source(config, lambda count: np.arange(count) >= 5).train
    assert data.names == names and data.files == ["a.parquet"] * 9
    assert [x.flatten().tolist() for x in data.sequences] == [[]] * 5 + [[float(i)] * 2 for i in range(5, 9)]

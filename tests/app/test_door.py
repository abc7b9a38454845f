"""Checks before a job starts: paths as people type them, errors before torch is loaded, settings that do not fit."""

import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from app.data import load_data
from app.errors import DataError
from app.jobs import run_job
from app.typed_paths import plain_paths
from app_runs import ROOT, compose_app, run_python
from cfg.data import TableDataConfig, TsDataConfig
from cfg.validation import ConfigError
from myfla.testing import cases

ODD_NAMES = [
    "two words.csv", "a=1.csv", "part (1).csv", "~draft.csv", "#1.csv", "größe.csv", "データ.csv", "it's.csv",
    "a,b.csv", "[x].csv", "{y}.csv", 'say "hi".csv', "a;b&c.csv", "100%.csv", "a:b.csv", "true", "1e5",
    "back\\slash.csv", "end\\", "quote\\'s.csv", "$HOME.csv", "glob(x)", "a!b*c?.csv", " space.csv", "+a@b.csv"]
BODY = "id,t,x,kind\n" + "".join(f"s{i},{t},{i * t % 7}.5,{'ab'[i % 2]}\n" for i in range(12) for t in range(3))
COLUMNS = {"sequence": "id", "time": "t", "label": "kind"}


@cases(name=ODD_NAMES)
def test_a_path_works_as_it_is_typed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(BODY)
    for path in (name, str(tmp_path / name)):
        (typed,) = plain_paths([f"data.train_path={path}"])
        assert OverridesParser.create().parse_override(typed).value() == path


def test_a_typed_path_arrives_in_the_config(tmp_path):
    path = tmp_path / "größe = #1 (it's mine), [2].csv"
    path.write_text(BODY)
    assert compose_app(["data=table", *plain_paths([f"data.train_path={path}"])]).data.train_path == str(path)


def test_a_path_that_is_not_there_is_typed_as_well_and_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my data.csv").write_text(BODY)
    found = plain_paths(["data.train_path=~/my data.csv", "job.output=new (2) #ä"])
    assert found == [f"data.train_path='{tmp_path}/my data.csv'", "job.output='new (2) #ä'"]


@cases(argument=["data.train_path=a.csv,b.csv", "data.train_path=choice(a.csv,b.csv)", "data.test_path=null",
                 "data.train_path='two words'", "run=${oc.env:RUN}", "data.label=a b", "job.input=glob(*)",
                 "~data.test_path", "encoder=gated_deltanet,rwkv7", "--multirun", "run="])
def test_what_hydra_reads_stays_hydra_s(argument):
    assert plain_paths([argument]) == [argument]


@pytest.mark.parametrize(("settings", "said"), [
    (["data=table", "data.train_path=no where.csv"], "error: data.train_path must be an existing file or folder; got "
     "'no where.csv'; relative paths start from"),
    (["data=table", "data.train_path=a (1).csv", "data.sequence=idd"], "error: data.sequence must be a column "
    "of a (1).csv; "
     "got 'idd'; did you mean 'id'?"),
    (["data=ts", "data.train_path=gone.ts"], "error: data.train_path must be an existing file or folder; got "
     "'gone.ts'; relative paths start from"),
    (["job=encode", "run=no run", "job.output=x"], "error: run must be the folder of a finished run; got 'no "
    "run', which is not a "
     "folder"),
])
def test_it_is_refused_before_torch_is_loaded(tmp_path, settings, said):
    (tmp_path / "a (1).csv").write_text(BODY)
    script = "\n".join([
        "import sys, runpy",
        f"sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT / 'libs')!r}]",
        "sys.argv = ['app', *sys.argv[1:]]",
        "try: runpy.run_module('app', run_name='__main__')",
        "except SystemExit as stop: assert stop.code == 1, stop.code",
        "assert not {'torch', 'lightning', 'pyarrow'} & set(sys.modules), 'loaded'",
    ])
    done = run_python(tmp_path, "-c", script, *settings)
    assert done.returncode == 0 and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(("settings", "said"), [
    (dict(layout="tall"), "data.layout must be one of long, lists, wide or null; got 'tall'"),
    (dict(ids="one"), "data.ids must be one of per_file, global or null; got 'one'"),
    (dict(separator="tabs"), "data.separator must be one of comma, semicolon, tab, space, pipe, point, apostrophe, one "
     "character, or null; got 'tabs'"),
    (dict(thousands="\n"), "data.thousands must be one of comma, semicolon, tab, space, pipe, point, apostrophe, one "
     "character, or null; got '\\n'"),
    (dict(decimal=","), "data.decimal must be one of point, comma or null; got ','"),
    (dict(decimal="comma", thousands="comma"), "data.thousands must differ from data.decimal; got 'comma'"),
    (dict(header="no"), "data.header must be true or false or null; got 'no'"),
    (dict(na_values=[1]), "data.na_values must be a list of texts; got [1]; e.g. ['?','-']"),
    (dict(window=0), "data.window must be an integer from 1 to 16777216 or null; got 0"),
    (dict(stride=2), "data.stride must be null without data.window; got 2"),
    (dict(window=2, layout="wide"), "data.window must be null with data.layout=wide; got 2"),
    (dict(time="t"), "data.time must be null without data.sequence; got 't'; lists are in order; a table of a "
    "row a step needs "
     "data.sequence, data.window or data.layout=long"),
    (dict(layout="wide", per_step=True), "data.per_step must be false with data.layout=wide; got True"),
])
def test_settings_that_do_not_fit_are_named(settings, said):
    with pytest.raises(ConfigError) as caught:
        TableDataConfig(train_path="a.csv", **settings)
    assert str(caught.value) == said


@pytest.mark.parametrize(("change", "said"), [
    (lambda text: text.replace(",x,", ",xx,"), "DIR/test.csv: columns must be those of the training table; "
    "got \"no 'x'\"; did "
     "you mean 'xx'?"),
    (lambda text: text.replace("0.5", "none"), "DIR/test.csv: row 1, column 'x' must hold numbers; got "
    "'none'; correct it, or "
     "leave the column out of data.features"),
    (lambda text: text.replace(",b\n", ",c\n"), "data=table: test set must have only classes that the "
    "training set has; got "
     "'c'; they cannot be learned; remove these sequences or add some to the training set"),
])
def test_a_test_table_must_be_like_the_training_table(tmp_path, change, said):
    for name, text in (("train.csv", BODY), ("test.csv", change(BODY))):
        (tmp_path / name).write_text(text)
    paths = {f"{name}_path": str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    with pytest.raises(DataError) as caught:
        load_data(TableDataConfig(**paths, **COLUMNS))
    assert str(caught.value).replace(str(tmp_path), "DIR") == said


def refused(folder, *settings):
    (folder / "run").mkdir()
    with pytest.raises(DataError) as caught:
        run_job(compose_app(list(settings)), folder / "run")
    assert not list((folder / "run").iterdir()), "nothing is left behind"
    return str(caught.value)


@cases(count=[1, 2])
def test_a_rare_class_is_named_with_the_counts_and_the_way_out(tmp_path, count):
    rare = "".join(f"r{i},0,1.5,rare\n" for i in range(count))
    (tmp_path / "a.csv").write_text(BODY + rare)
    held = ["data.validation_fraction=0.2"] if count == 2 else []  # by default a small set has a test set only
    said = refused(tmp_path, "data=table", f"data.train_path={tmp_path / 'a.csv'}", *held, *(
        f"data.{key}={value}" for key, value in COLUMNS.items()))
    assert said == (f"data: training set must have two sequences of class 'rare', to hold one out; got 1; there were "
                    f"rare {count}, a 6, b 6; add some, leave the class out, or merge it with another; each class "
                    "needs one to train on, one to test on without a test file, and one to validate on unless "
                    "data.validation_fraction is 0")


def test_a_next_step_needs_two_steps(tmp_path):
    (tmp_path / "a.csv").write_text("id,x\n" + "".join(f"s{i},{i}.5\n" for i in range(12)))
    said = refused(tmp_path, "data=table", f"data.train_path={tmp_path / 'a.csv'}", "data.sequence=id",
                   "job.objective=next_step", "encoder.direction=causal")
    assert said.startswith("data=table: training set must have a sequence of at least two steps for "
    "job.objective=next_step, "
                           "which needs two steps: one to see, one to predict; got '") and "of one step" in said


def test_ts_files_of_a_run_must_both_have_labels(tmp_path):
    head = "@univariate true\n@classLabel {}\n@data\n"
    (tmp_path / "train.ts").write_text(head.format("true a b") + "1,2:a\n3,4:b\n")
    (tmp_path / "test.ts").write_text(head.format("false") + "1,2\n")
    with pytest.raises(DataError, match=r"test.ts: @classLabel must name the classes of .*train.ts; got 'no labels'"):
        load_data(TsDataConfig(train_path=str(tmp_path / "train.ts"), test_path=str(tmp_path / "test.ts")))


@cases(source=["table", "ts"])
def test_a_file_that_is_trained_and_tested_on_is_named(tmp_path, caplog, source):
    (tmp_path / "a.csv").write_text(BODY)
    (tmp_path / "b.csv").write_text(BODY.replace("s", "u"))
    (tmp_path / "a.ts").write_text("@univariate true\n@classLabel true a b\n@data\n1,2:a\n3,4:b\n")
    if source == "table":
        name, config = "b.csv", TableDataConfig(train_path=str(tmp_path), test_path=str(tmp_path / "b.csv"), **COLUMNS)
    else:
        name, config = "a.ts", TsDataConfig(train_path=str(tmp_path / "a.ts"), test_path=str(tmp_path / "." / "a.ts"))
    load_data(config)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{name}: both trained and tested on; the test figures say nothing about new data"]


def test_csv_needs_no_more_than_python_and_parquet_says_what_it_needs(tmp_path, monkeypatch):
    from app.preflight import check_start

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.csv").write_text(BODY)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    config = compose_app(["data=table", f"data.train_path={tmp_path / 'a.csv'}", *(
        f"data.{key}={value}" for key, value in COLUMNS.items())])
    check_start(config)
    assert load_data(config.data).input_size == 1
    with pytest.raises(DataError, match=r"a.parquet: Parquet needs the package 'pyarrow'; pip install "
                       r"'myfla.parquet.'"):
        check_start(compose_app(["data=table", f"data.train_path={tmp_path / 'a.parquet'}"]))

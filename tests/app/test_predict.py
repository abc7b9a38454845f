"""``job=predict``: every sequence or step once, with its id, consistent with the run's own figures, in every format."""

import csv
import json

import pytest
import torch

from app.data import load_data
from app.errors import DataError, RunError
from app.jobs import run_job
from app_runs import compose_app
from cfg.validation import ConfigError
from encoders import InputError, load_encoder
from encoders.training.tasks import many
from encoders.training.trained import load_trained
from myfla.testing import assert_close, cases, raises
from runs import untrained

CLASSES = ["low", "high", 'odd "one"']


def table(path, count=12, order=("id", "t", "a", "b", "y", "v"), seed=0, skip=(), more=None):
    """A long table: sequences ``s0 ...`` of 2 to 6 steps, columns in any order."""
    draw = torch.Generator().manual_seed(seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        names = [name for name in order if name not in skip]
        writer.writerow([*names, *(more or ())])
        for i in range(count):
            for t in range(2 + i % 5):
                a, b = (1.7e9 + torch.randn(2, generator=draw, dtype=torch.float64) * torch.tensor([3.0, 1e6])).tolist()
                row = {"id": f"s{i}", "t": t, "a": a, "b": b, "y": CLASSES[i % 3], "v": 10.0 * i}
                writer.writerow([*(row[name] for name in names), *(more or {}).values()])
    return str(path)


LONG = ("data=table", "data.sequence=id", "data.time=t", "data.features=[a,b]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    path = table(folder / "train.csv", 60)
    common = (*LONG, f"data.train_path={path}", "data.test_fraction=0.5")
    kinds = {"classes": ("data.label=y",), "steps": ("data.label=y", "data.per_step=true"),
             "values": ("data.targets=[v]", "job.objective=regress"), "next": ("job.objective=next_step",
                                                                               "encoder.direction=causal")}
    return {name: untrained(folder / name, *common, *more) for name, more in kinds.items()}


def predict(tmp_path, run, name="out.csv", *overrides):
    output = tmp_path / name
    run_job(compose_app(["job=predict", f"run={run}", f"job.output={output}", "trainer.threads=1",
                         "trainer.progress=false", *overrides]), tmp_path)
    return output


def rows_of(path):
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for key, prefix in (("probabilities", "probability"), ("predicted", "predicted")):
            if isinstance(row.get(key), dict):
                row.update({f"{prefix} {name}": value for name, value in row.pop(key).items()})
        found.append(row)
    return found


def _value(key, text):
    if key in ("sequence", "step"):
        return int(text)
    return float(text) if key.startswith(("probability", "predicted ")) else text


def truth(run, path):
    """``{id: outputs}`` of every sequence alone: logits or values, by the public encoder and the written head."""
    encoder, trained, found = load_encoder(run), load_trained(run), {}
    rows = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["id"], []).append([float(row["a"]), float(row["b"])])
    for name, sequence in rows.items():
        hidden = encoder.encode([sequence], per_step=True)[0]
        read = hidden if trained.task.spec.per_step else encoder.encode([sequence])
        with torch.no_grad():
            outputs = trained.task.head(read)
        if trained.task.spec.shifts:
            outputs = trained.pipeline.untransform(outputs)
        elif trained.task.spec.kind == "values":
            outputs = outputs.double() * trained.task.target_std + trained.task.target_mean
        found[name] = outputs
    return found


@cases(kind=["classes", "steps", "values", "next"], form=[".csv", ".jsonl", ".parquet"])
def test_every_sequence_is_told_with_its_id_and_file(tmp_path, runs, kind, form, monkeypatch):
    if form == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(many, "PART", 5)
    path = table(tmp_path / "new.csv", skip=("y", "v"), seed=1)
    rows = rows_of(predict(tmp_path, runs[kind], f"out{form}", f"job.input={path}"))
    want, per_step = truth(runs[kind], path), kind in ("steps", "next")
    assert [(r["sequence"], r["id"], r["file"]) for r in rows if r.get("step", 0) == 0] == [
        (i, f"s{i}", "new.csv") for i in range(12)]
    if per_step:
        assert [(r["id"], r["step"]) for r in rows] == [(f"s{i}", t) for i in range(12) for t in range(2 + i % 5)]
    flat = torch.cat([want[f"s{i}"] for i in range(12)])
    if kind in ("classes", "steps"):
        share = flat.softmax(-1)
        names = load_trained(runs[kind]).classes
        assert [r["predicted"] for r in rows] == [names[i] for i in share.argmax(-1).tolist()]
        assert_close(torch.tensor([[r[f"probability {name}"] for name in names] for r in rows]), share, rms=1e-5)
        assert_close(torch.tensor([r["probability"] for r in rows]), share.max(-1).values, rms=1e-5)
    else:
        names = ["v"] if kind == "values" else ["a", "b"]
        got = torch.tensor([[r[f"predicted {name}"] for name in names] for r in rows], dtype=torch.float64)
        assert float(((got - flat) / flat.std(0)).abs().max()) < 1e-5


@cases(form=[".csv", ".jsonl", ".parquet"], per_step=[True, False])
def test_token_ids_have_the_probability_of_each_id_or_class(tmp_path, form, per_step, monkeypatch):
    """Next tokens of a text, and classes of token sequences; few sequences at a time where there are many numbers."""
    if form == ".parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(many, "NUMBERS", 5000)
    if per_step:
        (tmp_path / "a.txt").write_text("to be or not to be, " * 20)
        data = ["data=text", f"data.train_path={tmp_path / 'a.txt'}", "data.window=12", "job.objective=next_step",
                "encoder.direction=causal"]
    else:
        data = ["data=recall", "data.train_sequences=20", "data.test_sequences=8", "data.test_lengths=[32]"]
    run = untrained(tmp_path / "run", *data)
    trained = load_trained(run)
    rows = rows_of(predict(tmp_path, run, f"out{form}", "job.part=train"))
    sequences = load_data(trained.config.data).train.sequences
    encoder = load_encoder(run)
    with torch.no_grad():
        flat = trained.task.head(torch.cat(encoder.encode([s.long() for s in sequences], per_step=True))).softmax(-1)
    names = trained.task.spec.names or [str(i) for i in range(256)]
    assert len(names) == flat.shape[-1] and len(rows) == len(flat) > 100
    assert_close(torch.tensor([[r[f"probability {name}"] for name in names] for r in rows]), flat, rms=1e-5)
    assert [r["predicted"] for r in rows] == [names[i] for i in flat.argmax(-1).tolist()]
    short = rows_of(predict(tmp_path, run, f"short{form}", "job.part=train", "job.probabilities=predicted"))
    assert short == [{k: v for k, v in row.items() if not k.startswith("probability ")} for row in rows]


def test_order_and_labels_of_columns_change_nothing(tmp_path, runs):
    one = predict(tmp_path, runs["classes"], "a.csv", f"job.input={table(tmp_path / 'x.csv')}")
    (tmp_path / "other").mkdir()
    other = table(tmp_path / "other" / "x.csv", order=("v", "b", "id", "a", "t"))
    assert one.read_bytes() == predict(tmp_path, runs["classes"], "b.csv", f"job.input={other}").read_bytes()


@cases(case=[
    (dict(skip=("b",)), "columns must be the model's 2 features: a, b; got no 'b'; add them, or rename the columns"),
    (dict(more={"c": 1.0}), "got unknown 'c'; skip what is not a feature with job.ignore=[c]"),
    (dict(skip=("b",), more={"B": 1.0}), "got no 'b', and unknown 'B'"),
])
@cases(name=["predict", "encode", "evaluate"])
def test_a_missing_or_unknown_column_is_refused_by_every_job(tmp_path, runs, case, name):
    changes, reason = case
    path = table(tmp_path / "x.csv", **changes)
    output = [] if name == "evaluate" else [f"job.output={tmp_path / 'out.csv'}"]
    output += ["job.format=safetensors"] if name == "encode" else []
    with raises(InputError, "x.csv: columns", reason):
        run_job(compose_app([f"job={name}", f"run={runs['classes']}", f"job.input={path}", *output]), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_a_column_to_pass_over_is_named(tmp_path, runs):
    plain = predict(tmp_path, runs["classes"], "a.csv", f"job.input={table(tmp_path / 'x.csv')}")
    (tmp_path / "other").mkdir()
    path = table(tmp_path / "other" / "x.csv", more={"c": 7.5})
    got = predict(tmp_path, runs["classes"], "b.csv", f"job.input={path}", "job.ignore=[c]")
    assert got.read_bytes() == plain.read_bytes()


def test_the_runs_own_test_set_is_the_default(tmp_path, runs):
    rows = rows_of(predict(tmp_path, runs["classes"]))
    assert len(rows) == len(load_data(load_trained(runs["classes"]).config.data).test)
    assert {row["file"] for row in rows} == {"train.csv"} and all(row["id"].startswith("s") for row in rows)


def test_an_evaluation_tells_ids_and_files_and_the_columns(tmp_path, runs):
    path = table(tmp_path / "x.csv", order=("v", "b", "id", "a", "t", "y"))
    run_job(compose_app(["job=evaluate", f"run={runs['classes']}", f"job.input={path}", "trainer.threads=1"]), tmp_path)
    rows = rows_of(tmp_path / "predictions.csv")
    assert [(row["sequence"], row["id"], row["file"]) for row in rows] == [(i, f"s{i}", "x.csv") for i in range(12)]
    said = rows_of(predict(tmp_path, runs["classes"], "out.csv", f"job.input={path}"))
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in said]
    inputs = json.loads((tmp_path / "metrics.json").read_text())["inputs"]
    assert [column[0] for column in inputs["schema"]["features"]] == ["a", "b"]
    assert [column[0] for column in inputs["schema"]["left_out"]] == ["v"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 features: a, b; time: t" in page and "left out: v (not in data.features)" in page


def test_ts_files_without_labels_are_predicted(tmp_path):
    from app.data.japanese_vowels import FILES

    train = FILES / "JapaneseVowels_TRAIN.ts"
    run = untrained(tmp_path / "run", "data=ts", f"data.train_path={train}")
    lines = (FILES / "JapaneseVowels_TEST.ts").read_text().splitlines()
    body = lines[lines.index("@data") + 1 :][:20]
    bare = [line.rpartition(":")[0] for line in body]
    (tmp_path / "new.ts").write_text("\n".join(["@classLabel false", "@data", *bare]) + "\n")
    (tmp_path / "old.ts").write_text("\n".join(lines[: lines.index("@data") + 1] + body) + "\n")
    new, old = (predict(tmp_path, run, f"{name}.csv", f"job.input={tmp_path / name}.ts") for name in ("new", "old"))
    assert new.read_text().replace("new.ts", "") == old.read_text().replace("old.ts", "")
    assert len(rows_of(new)) == 20 and rows_of(new)[3]["file"] == "new.ts"


def test_refusals_name_field_and_way_out(tmp_path, runs):
    (tmp_path / "there.csv").write_text("mine")
    with raises(RunError, "job.output must be a new file; got", "there.csv', which exists; name another, or remove it"):
        predict(tmp_path, runs["classes"], "there.csv")
    assert (tmp_path / "there.csv").read_text() == "mine"
    with raises(ConfigError, "job.output must end in .csv, .parquet, .jsonl"):
        compose_app(["job=predict", "job.output=x.txt"])
    with raises(ConfigError, "job.probabilities must be one of all, predicted; got 'none'"):
        compose_app(["job=predict", "job.probabilities=none"])
    with raises(ConfigError, "run must be the folder of a finished run; got None; python -m app job=predict run="):
        run_job(compose_app(["job=predict"]), tmp_path)
    with raises(ConfigError, "job.ignore must be a list of different names"):
        compose_app(["job=predict", "job.ignore=[a,a]"])
    load_encoder(runs["classes"]).save(tmp_path / "alone")
    with raises(RunError, "must hold a task (task.safetensors) to predict with; got an encoder by itself"):
        predict(tmp_path, tmp_path / "alone")
    with raises(DataError, "must be an existing"):
        predict(tmp_path, runs["classes"], "x.csv", f"job.input={tmp_path / 'none.csv'}")


@cases(name=["out.csv", "out.jsonl", "out.parquet"])
def test_a_file_that_fails_on_the_way_leaves_nothing(tmp_path, runs, monkeypatch, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(many, "PART", 4)
    made, once = many.encode_many, []

    def failing(*given):
        if once:
            raise KeyboardInterrupt
        once.append(True)
        return made(*given)

    monkeypatch.setattr(many, "encode_many", failing)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, runs["classes"], name)
    assert once and not list(tmp_path.glob("*out*"))


@cases(label=["cls", "t12"])
def test_a_row_a_series_is_predicted_with_and_without_its_label(tmp_path, label):
    """Also where the label's column is named like a step."""
    steps = [f"t{i}" for i in range(12)]
    draw = torch.Generator().manual_seed(0)
    rows = [{**{name: repr(float(torch.randn((), generator=draw)) + i % 2) for name in steps}, label: str(i % 2)}
            for i in range(30)]

    def write(name, columns):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / name)

    path = write("train.csv", [label, *steps])
    run = untrained(tmp_path / "run", "data=table", "data.layout=wide", f"data.train_path={path}",
                    f"data.label={label}")
    assert load_trained(run).pipeline.width == 1
    files = [path, write("bare.csv", steps), write("turned.csv", [*steps[::-1], label])]
    found = [rows_of(predict(tmp_path, run, f"{i}.csv", f"job.input={path}")) for i, path in enumerate(files)]
    assert len(found[0]) == 30
    for other in found[1:]:
        assert [{**row, "file": ""} for row in other] == [{**row, "file": ""} for row in found[0]]


def test_rows_of_lists_are_predicted_with_their_ids(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    lengths = [1 + i % 4 for i in range(24)]
    columns = {"who": [f"w{i}" for i in range(24)], "class": [str(i % 2) for i in range(24)],
               "b": [torch.randn(n).tolist() for n in lengths], "a": [torch.randn(n).tolist() for n in lengths]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    new = {name: columns[name] for name in ("a", "who", "b")}
    pq.write_table(pa.table(new), tmp_path / "new.parquet")
    run = untrained(tmp_path / "run", "data=table", "data.layout=lists", "data.sequence=who", "data.label=class",
                    f"data.train_path={tmp_path / 'train.parquet'}")
    old, got = (rows_of(predict(tmp_path, run, f"{name}.csv", f"job.input={tmp_path / name}.parquet")) for name in
                ("train", "new"))
    assert [row["id"] for row in got] == columns["who"]
    assert [{**row, "file": ""} for row in got] == [{**row, "file": ""} for row in old]

"""The same numbers give the same model in every format; noise is not learned."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from app.data import load_data, read_source
from app.data.check import checked
from app.jobs import run_job
from app_runs import compose_app
from cfg.data import TableDataConfig
from encoders.training.data.module import SequenceDataModule
from encoders.training.data.sequences import SequenceData, SequenceSet
from myfla.testing import cases

CONFIG = dict(sequence="id", time="t", label="kind", test_fraction=0.25)
NAMES = ["acc_x", "acc_y", "heat"]


def truth(seed=0):
    """Sequences by id, with a class each: a channel around 1.7e9, one of any size, one of whole numbers."""
    draw = np.random.default_rng(seed)
    found = {}
    for i in range(24):
        steps, kind = int(draw.integers(2, 7)), i % 2
        x = np.stack([1.7e9 + 3 * draw.normal(size=steps) + 2 * kind, 10.0 ** draw.uniform(-9, 9, steps),
                      draw.integers(-9, 9, steps).astype(np.float64)], 1)
        found[f"s{i}"] = (x, ("calm", "busy")[kind])
    return found


def rows_of(found):
    return [{"id": name, "t": t, **dict(zip(NAMES, step)), "kind": kind} for name, (x, kind) in found.items()
            for t, step in enumerate(x.tolist())]


def write_csv(path, rows, columns):
    with open(str(path), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[repr(row[c]) if isinstance(row[c], float) else row[c] for c in columns] for row in rows])


def write_parquet(path, rows, columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({c: [row[c] for row in rows] for c in columns}), str(path))


def written(folder, form, seed):
    """Rows, columns and files in an order of chance: the rows of a file lie in a stretch of time of each sequence."""
    draw = np.random.default_rng(seed)
    rows, folder = rows_of(truth()), folder / f"{form}{seed}"
    folder.mkdir()
    columns = [("id", "t", *NAMES, "kind")[i] for i in draw.permutation(6)]
    edges = sorted(draw.choice(np.arange(1, 7), size=2, replace=False).tolist())
    for number, part in enumerate(draw.permutation(3).tolist()):
        mine = [row for row in rows if sum(row["t"] >= edge for edge in edges) == part]
        mine = [mine[i] for i in draw.permutation(len(mine))]
        (write_csv if form == "csv" else write_parquet)(folder / f"{'abc'[number]}.{form}", mine, columns)
    return folder


def by_numpy(config):
    """What numpy says that the data are."""
    found = sorted(truth().items(), key=lambda item: int(item[0][1:]))
    classes = sorted({kind for _, (_, kind) in found})
    part = SequenceSet([torch.from_numpy(x) for _, (x, _) in found],
                       torch.tensor([classes.index(kind) for _, (_, kind) in found]), names=[name for name, _ in found])
    return checked(SequenceData(part, None, classes, len(NAMES)), config)


def same(one, other):
    assert one.classes == other.classes and one.input_size == other.input_size
    for a, b in ((one.train, other.train), (one.test, other.test)):
        assert len(a) == len(b) and torch.equal(a.targets, b.targets)
        for x, y in zip(a.sequences, b.sequences):
            assert x.dtype == y.dtype == torch.float64 and torch.equal(x, y)


@cases(form=["csv", "parquet"], seed=range(6))
def test_order_of_columns_rows_and_files_changes_no_number(tmp_path, form, seed):
    config = TableDataConfig(train_path=str(written(tmp_path, form, seed)), **CONFIG)
    data = load_data(config)
    same(data, by_numpy(config))
    module, want = (SequenceDataModule(d, config, seed) for d in (data, by_numpy(config)))
    for name in ("train", "validation"):
        for a, b in zip(module.prepared(getattr(module, name)), want.prepared(getattr(want, name))):
            assert a.x.dtype == torch.float32 and torch.equal(a.x, b.x) and torch.equal(a.target, b.target)


def test_the_trained_model_is_the_same_bit_for_bit(tmp_path, monkeypatch):
    import app.jobs.train as train

    found = []
    places = [written(tmp_path, "csv", 1), written(tmp_path, "parquet", 2)]
    for i, place in enumerate([*places, places[0]]):
        if i == len(places):
            monkeypatch.setattr(train, "load_data", by_numpy)
        folder = tmp_path / f"run{i}"
        folder.mkdir()
        settings = [f"data.{key}={value}" for key, value in CONFIG.items()]
        run_job(compose_app(["data=table", "experiment=quick", "trainer.max_epochs=2", "trainer.threads=1",
                             f"data.train_path={place}", *settings]), folder)
        files = [(folder / name).read_bytes() for name in ("encoder.safetensors", "task.safetensors")]
        figures = json.loads((folder / "metrics.json").read_text())
        found.append((files, [figures[name] for name in ("test_loss", "val_loss", "train_loss", "test_accuracy")]))
    assert all(one == found[0] for one in found[1:])


def nearest_neighbour(data):
    """How often the nearest training sequence has the class: what one sequence tells of another, it finds."""
    module = SequenceDataModule(data, TableDataConfig(train_path="x"), 0, validate=False)
    train, test = (module.prepared(part) for part in (module.train, data.test))
    length = max(train.lengths + test.lengths)

    def flat(part):
        return torch.stack([torch.nn.functional.pad(sample.x, (0, 0, 0, length - len(sample.x))).flatten()
                            for sample in part])

    nearest = torch.cdist(flat(test), flat(train)).argmin(1)
    right = [bool(train[int(i)].target == sample.target) for i, sample in zip(nearest, test)]
    return sum(right) / len(right), len(right)


def noise(folder, shape, seed):
    """A table of noise, sorted by class, with every column that people leave in it."""
    draw = np.random.default_rng(seed)
    lines = []
    if shape == "long":
        for i in range(120):
            for t in range(4):
                lines.append([len(lines), f"s{i}", 500 + i, t, *draw.normal(size=3), "ab"[i // 60], 3 + i // 60])
        head = ["", "id", "number", "t", "x", "y", "z", "kind", "code"]
        settings = dict(sequence="id", time="t")
    elif shape == "wide":
        lines = [[i, "ab"[i // 60], 3 + i // 60, *draw.normal(size=8)] for i in range(120)]
        head, settings = ["Unnamed: 0", "kind", "code", *(f"t{i}" for i in range(8))], dict(layout="wide")
    else:  # one recording; in each stretch of ten steps another class
        kinds = draw.integers(0, 2, 60)
        lines = [[t, *draw.normal(size=2), "ab"[kinds[t // 10]], 3 + kinds[t // 10]] for t in range(600)]
        head, settings = ["t", "x", "y", "kind", "code"], dict(time="t", window=8, stride=1)
    with open(str(folder / "a.csv"), "w", newline="") as file:
        csv.writer(file).writerows([head, *lines])
    return TableDataConfig(train_path=str(folder / "a.csv"), label="kind", test_fraction=0.4, **settings)


@cases(shape=["long", "wide", "windows"], seed=[0, 1, 2])
def test_of_noise_comes_chance(tmp_path, shape, seed):
    right, count = nearest_neighbour(load_data(noise(tmp_path, shape, seed)))
    independent = count / 8 if shape == "windows" else count  # windows that overlap are wrong or right together
    assert abs(right - 0.5) < 4 * math.sqrt(0.25 / independent), (right, count)


def test_the_measure_finds_what_leaks(tmp_path):
    """With the columns that are left out, the same noise can be predicted."""
    config = noise(tmp_path, "long", 0)
    for name in ("code", "number"):
        config.features = [name]
        assert nearest_neighbour(load_data(config))[0] > 0.95, name


@cases(recordings=[1, 3, 8])
def test_no_step_is_on_both_sides_of_a_split(tmp_path, recordings):
    draw = np.random.default_rng(0)
    rows = [[i, t, repr(draw.normal()), "ab"[t // 25 % 2]] for i in range(recordings) for t in range(400 // recordings)]
    with open(str(tmp_path / "a.csv"), "w", newline="") as file:
        csv.writer(file).writerows([["id", "t", "x", "kind"], *rows])
    sequence = {} if recordings == 1 else {"sequence": "id"}
    config = TableDataConfig(train_path=str(tmp_path / "a.csv"), time="t", label="kind", window=5, stride=2,
                             features=["x"], **sequence)
    module = SequenceDataModule(load_data(config), config, 0)
    parts = [torch.cat(list(part.sequences)) for part in (module.train, module.validation, module.tests["test"])]
    for i, part in enumerate(parts):
        assert len(part)
        assert not any(torch.isin(part, other).any() for other in parts[:i])


def test_a_small_spread_on_a_large_number_is_learned(tmp_path):
    """1.7e9 +- 3: in 32 bits, steps of 128 would be all that is left."""
    draw = np.random.default_rng(0)
    lines = [[f"s{i}", t, repr(1.7e9 + 3 * draw.normal() + 4 * (i % 2)), "ab"[i % 2]] for i in range(80)
             for t in range(6)]
    with open(str(tmp_path / "a.csv"), "w", newline="") as file:
        csv.writer(file).writerows([["id", "t", "x", "kind"], *lines])
    data = load_data(TableDataConfig(train_path=str(tmp_path / "a.csv"), **CONFIG))
    module = SequenceDataModule(data, TableDataConfig(train_path="x"), 0, validate=False)
    means = torch.stack([sample.x.mean() for sample in module.prepared(data.test)])
    middle = torch.cat([sample.x for sample in module.prepared(module.train)]).mean()
    guess = (means > middle).long()
    assert (guess == data.test.targets).float().mean() >= 0.85 and len(torch.cat([s.x for s in module.prepared(
        module.train)]).unique()) > 300


def test_all_windows_are_there_where_nothing_is_split(tmp_path):
    with open(str(tmp_path / "a.csv"), "w", newline="") as file:
        csv.writer(file).writerows([["t", "x"], *([t, t % 7 + 0.5] for t in range(200))])
    config = TableDataConfig(train_path=str(tmp_path / "a.csv"), time="t", window=20, stride=5)
    found = read_source(config).train
    assert found.names == [f"a.csv[{start}:{start + 20}]" for start in range(0, 181, 5)]
    assert (found.groups == -1).sum() == 3 and len(load_data(config).train) < len(found)

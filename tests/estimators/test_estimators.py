"""The estimators train and save as the application does, and leave nothing behind."""

import csv
import os
import random
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from app.jobs import run_job
from app_runs import compose_app
from cfg.encoder import ENCODER_CONFIGS
from encoders import InputError, SequenceClassifier, SequenceEncoder, SequenceRegressor, load_encoder
from encoders.errors import DataError, RunError
from encoders.estimators.settings import make_config
from encoders.estimators.tags import NotFittedError
from myfla.testing import cases, raises

QUICK = dict(hidden_size=8, num_layers=1, max_epochs=2, random_state=0)
JOB = ["trainer.threads=1", "trainer.max_epochs=2", "encoder.hidden_size=8", "encoder.num_layers=1"]


def sequences(count=24, channels=2, seed=0):
    """Uneven, ``[channels, time]`` each; the second half lies higher."""
    rng = np.random.RandomState(seed)
    return [rng.randn(channels, 6 + i % 7) + (2.0 if 2 * i >= count else 0.0) for i in range(count)]


LABELS = np.repeat(["low", "high"], 12)


def write_ts(path, X, y=None):
    lines = ["@problemName x", "@timeStamps false", "@univariate false", "@dimensions 2", "@equalLength false",
             "@classLabel true high low", "@data"]
    for i, x in enumerate(X):
        label = "?" if y is None else y[i]
        lines.append(":".join([*(",".join(map(repr, map(float, row))) for row in x), label]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def fitted():
    return SequenceClassifier("gru", **QUICK).fit(sequences(), LABELS)


def predictions(path, classes):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["predicted"] for row in rows], [[row[f"probability {name}"] for name in classes] for row in rows]


def test_the_application_loads_what_an_estimator_saves_bit_for_bit(fitted, tmp_path):
    X = sequences(30, seed=1)
    folder = fitted.save(tmp_path / "model")
    new = write_ts(tmp_path / "new.ts", X)
    run_job(compose_app(["job=predict", f"run={folder}", f"job.input={new}", f"job.output={tmp_path / 'p.csv'}",
                         "trainer.threads=1"]), tmp_path / "a")
    predicted, probabilities = predictions(tmp_path / "p.csv", fitted.classes_)
    assert predicted == fitted.predict(X).tolist()
    assert np.array_equal(np.array(probabilities, dtype=np.float32), fitted.predict_proba(X)) and len(predicted) == 30
    run_job(compose_app(["job=encode", f"run={folder}", f"job.input={new}", f"job.output={tmp_path / 'e'}",
                         "job.format=safetensors", "trainer.threads=1"]), tmp_path / "b")
    made = SequenceEncoder.load(folder).transform(X)
    (part,) = (tmp_path / "e").glob("*.safetensors")
    assert np.array_equal(load_file(str(part))["embeddings"], made)
    assert np.array_equal(load_encoder(folder).encode([x.T for x in X]).numpy(), made)


def test_an_estimator_loads_what_the_application_saves_bit_for_bit(tmp_path):
    X = sequences(seed=2)
    train, test = write_ts(tmp_path / "train.ts", sequences(), LABELS), write_ts(tmp_path / "test.ts", X, LABELS)
    run = tmp_path / "run"
    run.mkdir()
    run_job(compose_app(["data=ts", f"data.train_path={train}", f"data.test_path={test}", "encoder=gru", *JOB,
                         "job.noise=0.1", "seed=3"]), run)
    model = SequenceClassifier.load(run)
    given = {"encoder.hidden_size": 8, "encoder.num_layers": 1, "trainer.max_epochs": 2, "job.noise": 0.1}
    settings = model.get_params()["settings"]
    assert given.items() <= settings.items()
    assert settings["encoder.stem"] == "none" and settings["job.learning_rate"] == 2e-3  # chosen by the data, and kept
    assert model.get_params()["random_state"] == 3
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == model.predict(X).tolist()
    embeddings = load_file(str(run / "embeddings.safetensors"))["embeddings"]
    again = SequenceEncoder.load(run).transform(X)
    assert np.allclose(embeddings, again, atol=1e-6)  # in batches of other sizes
    refitted = SequenceClassifier(**model.get_params()).fit(sequences(), LABELS)
    first, second = model.encoder_.state_dict(), refitted.encoder_.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first), "the same training gives the same weights"


@cases(name=list(ENCODER_CONFIGS), objective=["classify", "regress"])
def test_defaults_are_those_of_the_application(name, objective):
    here = make_config(name, objective, {}, 0, "cpu", 1, True)
    there = compose_app([f"encoder={name}", f"job.objective={objective}"])
    for part in ("encoder", "job", "trainer", "callbacks"):
        assert getattr(here, part) == getattr(there, part)
    for field in ("batch_size", "validation_fraction", "standardize", "missing", "own_scale"):
        assert getattr(here.data, field) == getattr(there.data, field)


def test_the_same_data_in_any_form_give_the_same_model(fitted):
    X = sequences()
    forms = {
        "time first": ("channels_last", [x.T for x in X]),
        "tensors": ("channels_first", [torch.tensor(x) for x in X]),
        "lists": ("channels_first", [x.tolist() for x in X]),
        "objects": ("channels_first", np.array([*X, None], dtype=object)[:-1]),
    }
    for name, (layout, data) in forms.items():
        again = SequenceClassifier("gru", **QUICK, layout=layout).fit(data, LABELS.tolist())
        assert np.array_equal(again.predict_proba(data), fitted.predict_proba(X)), name
    even = np.stack([x[:, :6] for x in X])
    assert np.array_equal(fitted.predict_proba(even), fitted.predict_proba([x[:, :6] for x in X]))


def test_a_table_is_one_channel():
    X = np.stack([x[0, :6] for x in sequences()])
    model = SequenceClassifier("gru", **QUICK).fit(X, LABELS)
    cube = SequenceClassifier("gru", **QUICK).fit(X[:, None], LABELS)
    assert np.array_equal(model.predict_proba(X), cube.predict_proba(X[:, None])) and model.n_features_in_ == 6
    with raises(InputError, "X has 4 features, but SequenceClassifier is expecting 6 features as input"):
        model.predict(X[:, :4])
    assert len(model.predict([row[:4] for row in X])) == 24


def test_a_call_leaves_nothing_behind(fitted):
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads(),
              torch.are_deterministic_algorithms_enabled(), os.environ.get("PL_GLOBAL_SEED"), list(warnings.filters))
    SequenceClassifier("gru", **{**QUICK, "max_epochs": 1}, threads=2).fit(sequences(), LABELS).predict(sequences())
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), torch.get_num_threads(),
             torch.are_deterministic_algorithms_enabled(), os.environ.get("PL_GLOBAL_SEED"), list(warnings.filters))
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_parameters_and_callbacks():
    seen = []
    model = SequenceClassifier("gru", **QUICK, callbacks=[seen.append], settings={"job.refit": False})
    model.fit(sequences(), LABELS)
    assert [row["epoch"] for row in seen] == [1, 2] and seen == model.history_ and "val_loss" in seen[0]
    model.set_params(encoder={"name": "gla", "num_heads": 1}, num_layers=2)
    assert model.get_params()["num_layers"] == 2
    assert model.fit(sequences(), LABELS).encoder_.config.name == "gla"
    with pytest.raises(ValueError, match="Invalid parameter 'x'"):
        model.set_params(x=1)


@cases(labels=[np.repeat([3, 7], 12), np.repeat([False, True], 12), np.repeat([1.0, 2.0], 12), LABELS])
def test_labels_come_back_as_they_were(labels, tmp_path):
    model = SequenceClassifier("gru", **QUICK).fit(sequences(), labels)
    again = SequenceClassifier.load(model.save(tmp_path))
    for one in (model, again):
        assert one.classes_.dtype == labels.dtype and set(one.predict(sequences())) <= set(labels)
    assert again.get_params() == model.get_params()


@cases(columns=[None, 1, 2])
def test_numbers_are_predicted_in_their_units(columns, tmp_path):
    y = np.linspace(1e9, 1e9 + 5, 24) if columns is None else np.linspace(0, 1, 24 * columns).reshape(24, columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a column vector
        model = SequenceRegressor("gru", **QUICK).fit(sequences(), y)
    found = SequenceRegressor.load(model.save(tmp_path)).predict(sequences())
    assert np.array_equal(found, model.predict(sequences())) and found.shape == ((24, 2) if columns == 2 else (24,))
    assert np.abs(found - y.reshape(found.shape)).max() < 10


def test_missing_values_and_groups(tmp_path):
    X = sequences()
    X[3][1, 2] = np.nan
    with raises(InputError, "got NaN in sequence 3, channel 1, step 2; missing='mean' or 'forward' says what to put"):
        SequenceClassifier("gru", **QUICK).fit(X, LABELS)
    model = SequenceClassifier("gru", **QUICK, missing="forward").fit(X, LABELS, groups=np.arange(24) // 4)
    again = SequenceClassifier.load(model.save(tmp_path))
    assert np.isfinite(again.predict_proba(X)).all() and again.missing == "forward"
    with raises(DataError, "groups"):
        SequenceClassifier("gru", **QUICK).fit(sequences(), LABELS, groups=np.zeros(24))


def test_without_targets_each_next_step_is_learned(tmp_path):
    model = SequenceEncoder("gru", **QUICK).fit(sequences())
    assert model.encoder_.config.direction == "causal" and model.task_.spec.objective == "next_step"
    assert SequenceEncoder("gru", **QUICK).fit(sequences(), LABELS).task_.spec.names == ["high", "low"]
    assert SequenceEncoder("gru", **QUICK).fit(sequences(), np.linspace(0, 1, 24)).task_.spec.objective == "regress"
    assert np.array_equal(SequenceEncoder.load(model.save(tmp_path)).transform(sequences()),
                          model.transform(sequences()))
    assert model.get_feature_names_out()[0] == "sequenceencoder0"


@cases(row=[
    (dict(X=np.zeros(5)), "Reshape your data"),
    (dict(X="abc"), "X must be an array or a list of arrays; got str"),
    (dict(X=[]), "must have at least one sequence"),
    (dict(X=np.zeros((3, 0))), "0 feature(s) (shape=(3, 0)) while a minimum of 1 is required"),
    (dict(X=[np.zeros((2, 5)), np.zeros((3, 5))], y=[0, 1]),
     "the same channels; got 2 in the first and 3 in sequence 1"),
    (dict(X=[[1, "a"], [2, 3]], y=[0, 1]), "must be numbers"),
    (dict(X=[np.array([1, np.inf]), np.zeros(3)], y=[0, 1]), "got inf in sequence 0, channel 0, step 1"),
    (dict(y=None), "requires y to be passed, but the target y is None"),
    (dict(y=LABELS[:-1]), "one value for each of the 24 sequences of X; got 23"),
    (dict(y=np.linspace(0, 1, 24)), "Unknown label type: y must be classes; got numbers with a fraction"),
    (dict(y=["a", 1] * 12), None),
    (dict(y=[None, "x"] * 12), "must be all strings or all integers; got NoneType, str"),
    (dict(y=np.zeros(24)), "y must have at least two classes; got one class: 0.0"),
    (dict(X=[np.zeros(4)], y=["a"]), "n_samples = 1"),
    (dict(layout="time"), "layout must be one of channels_first, channels_last; got 'time'"),
    (dict(random_state=-1), "random_state must be an integer from 0"),
    (dict(encoder="gruu"), "did you mean 'gru'"),
    (dict(settings={"job.noize": 1}), "job.noize must be a field of this version; got 1; did you mean 'noise'?"),
    (dict(settings={"noise": 1}), "noise must be a setting GROUP.FIELD of encoder, data, job, trainer, callbacks"),
    (dict(max_epochs=0), "trainer.max_epochs must be an integer from 1"),
])
def test_what_does_not_do_is_named(row):
    changes, message = row
    given = {"X": sequences(), "y": LABELS, **{k: v for k, v in changes.items() if k in ("X", "y")}}
    params = {k: v for k, v in changes.items() if k not in ("X", "y")}
    model = SequenceClassifier(**{"encoder": "gru", **QUICK, **params})
    if message is None:  # numpy makes text of both
        assert sorted(model.fit(given["X"], given["y"]).classes_) == ["1", "a"]
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        model.fit(given["X"], given["y"])
    assert message in str(caught.value)


def test_what_a_folder_does_not_hold_is_named(fitted, tmp_path):
    with pytest.raises(NotFittedError):
        SequenceClassifier().predict(sequences())
    with raises(RunError, "which is not a folder"):
        SequenceClassifier.load(tmp_path / "none")
    fitted.save(tmp_path / "a")
    with raises(RunError, "must hold a model for regress; got one for classify; use SequenceClassifier.load"):
        SequenceRegressor.load(tmp_path / "a")
    fitted.encoder_.save(tmp_path / "b")
    with raises(RunError, "use encoders.load_encoder"):
        SequenceClassifier.load(tmp_path / "b")
    with raises(InputError, "X must have 2 channels, as in fit; got 3, by layout='channels_first'"):
        fitted.predict(np.zeros((1, 3, 5)))
    with raises(RunError, "were handed over in Python and are not kept"):
        run_job(compose_app(["job=predict", f"run={tmp_path / 'a'}"]), tmp_path / "c")

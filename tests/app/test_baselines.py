"""Simple methods beside every training."""

import json
import logging

import numpy as np
import pytest
import torch

from app.baselines.linear import logistic_regression, ridge_regression
from app.baselines.measure import better, measure_baselines
from app.baselines.rocket import padded
from app.jobs import run_job
from app_runs import QUICK, compose_app
from encoders import InputPipeline
from encoders.training.data.prepared import Prepared
from encoders.training.data.sequences import SequenceSet
from encoders.training.tasks.spec import TaskSpec
from myfla.testing import cases

CLASSES = TaskSpec("classify", "classes", 3, False, ["a", "b", "c"])
VALUES = TaskSpec("regress", "values", 1, False, ["v"])


def draws(n=150, f=6, seed=0):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=made, dtype=torch.float64) * torch.logspace(-2, 2, f, dtype=torch.float64) + 5
    noise = torch.randn(n, 3, generator=made, dtype=torch.float64)
    weights = torch.randn(f, 3, generator=made).double()
    scores = (x - 5) / torch.logspace(-2, 2, f, dtype=torch.float64) @ weights + noise
    return x, scores


def test_logistic_regression_is_at_its_minimum():
    """Compared with Newton's method, which shares no code with it."""
    x, scores = draws()
    y = scores.argmax(1)
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    wide = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    penalty = torch.cat([torch.ones(6, 3), torch.zeros(1, 3)]).double()

    def loss(w):
        w = w.view(7, 3)
        return torch.nn.functional.cross_entropy(wide @ w, y, reduction="sum") + 0.5 * (penalty * w.square()).sum()

    w = torch.zeros(21, dtype=torch.float64)
    for _ in range(25):
        gradient = torch.autograd.functional.jacobian(loss, w)
        hessian = torch.autograd.functional.hessian(loss, w) + 1e-9 * torch.eye(21, dtype=torch.float64)
        w = w - torch.linalg.solve(hessian, gradient)
    other, _ = draws(400, seed=1)
    want = torch.cat([(other - x.mean(0)) / x.std(0, unbiased=False), torch.ones(400, 1, dtype=torch.float64)], 1)
    said = logistic_regression(x, y, other, 3)
    assert (said == (want @ w.view(7, 3)).argmax(1)).double().mean() > 0.995


def test_ridge_regression_takes_the_penalty_with_the_lowest_error_on_the_one_left_out():
    x, scores = draws(40)
    y, z = scores[:, :1], (x - x.mean(0)) / x.std(0, unbiased=False)

    def solved(z, y, penalty):
        """Weights and mean, with the mean not penalised."""
        wide = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
        ridge = penalty * torch.diag(torch.cat([torch.ones(z.shape[1]), torch.zeros(1)]).double())
        return torch.linalg.solve(wide.T @ wide + ridge, wide.T @ y)

    def left_out(penalty):
        errors = []
        for i in range(len(z)):
            keep = [j for j in range(len(z)) if j != i]
            w = solved(z[keep], y[keep], penalty)
            errors.append(float((y[i] - torch.cat([z[i], torch.ones(1).double()]) @ w).square()))
        return sum(errors)

    best = min(torch.logspace(-3, 5, 17, dtype=torch.float64).tolist(), key=left_out)
    other, _ = draws(30, seed=1)
    wide = torch.cat([(other - x.mean(0)) / x.std(0, unbiased=False), torch.ones(30, 1, dtype=torch.float64)], 1)
    assert torch.allclose(ridge_regression(x, y, other), wide @ solved(z, y, best), rtol=1e-8)


def test_they_are_those_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x, scores = draws()
    other, _ = draws(400, seed=1)
    mean, std = x.mean(0), x.std(0, unbiased=False)
    z, w = ((v - mean).div(std).numpy() for v in (x, other))
    theirs = linear.LogisticRegression(C=1, max_iter=1000).fit(z, scores.argmax(1).numpy()).predict(w)
    assert (logistic_regression(x, scores.argmax(1), other, 3).numpy() == theirs).mean() > 0.995
    ridge = linear.RidgeCV(np.logspace(-3, 5, 17)).fit(z, scores[:, :1].numpy()).predict(w)
    assert np.allclose(ridge_regression(x, scores[:, :1], other).numpy().ravel(), ridge.ravel(), rtol=1e-6)


def prepared(spec, seed=0, count=60):
    rng = np.random.RandomState(seed)
    targets = torch.from_numpy(rng.randint(0, 3, count))
    x = [torch.from_numpy(rng.randn(8 + i % 9, 2)) + 2.0 * int(k) for i, k in enumerate(targets)]
    wanted = targets if spec.kind == "classes" else targets.double()[:, None] + 0.1
    data = SequenceSet(x, wanted)
    return Prepared(data, InputPipeline.fit(x))


@cases(spec=[CLASSES, VALUES])
def test_what_there_is_to_see_is_seen(spec):
    found = measure_baselines(prepared(spec), prepared(spec, 1), spec, None)
    rows = list(found.values())
    if spec.kind == "classes":
        assert list(found)[:2] == ["the most frequent class", "logistic regression on summary features"]
        assert rows[0]["accuracy"] < 0.6 and rows[1]["accuracy"] > 0.9
    else:
        assert list(found)[:2] == ["the mean", "ridge regression on summary features"]
        assert rows[0]["rmse"] > 0.6 > 0.5 > rows[1]["rmse"]
    try:
        import aeon  # noqa: F401
    except ImportError:
        assert len(rows) == 2
        return
    assert list(found)[2] == "MiniRocket" and (rows[2].get("accuracy", 0) > 0.9 or rows[2].get("rmse", 9) < 0.4)


def test_series_of_all_lengths_become_one_array():
    x = [torch.arange(4.0).reshape(2, 2), torch.arange(24.0).reshape(12, 2)]
    made = padded(2, x.__getitem__, 10)
    assert made.shape == (2, 2, 10) and made[0, 0].tolist() == [0, 2, *[2] * 8] and made[1, 1, -1] == 19
    assert padded(1, x.__getitem__, 2).shape == (1, 2, 9), "as long as MiniRocket's kernels are"


@cases(job=[
    (["job.objective=classify"], "accuracy", "the most frequent class"),
    (["data=counting", "data.train_sequences=40", "data.test_sequences=10", "data.test_lengths=[32]"], "accuracy",
     "the most frequent class"),
    (["job.objective=next_step", "encoder.direction=causal"], "rmse", "the present step again"),
])
def test_a_run_shows_them_and_says_so_where_it_loses(job, tmp_path, caplog):
    settings, key, name = job
    with caplog.at_level(logging.INFO):
        run_job(compose_app([*QUICK, *settings, "job.refit=false", "trainer.max_epochs=1"]), tmp_path)
    found = json.loads((tmp_path / "metrics.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert name in found["baselines"] and "Comparison with simple methods" in page and name in page
    assert f"{name} " in caplog.text
    best = (max if key == "accuracy" else min)(one[key] for one in found["baselines"].values())
    loses = best > found[f"test_{key}"] if key == "accuracy" else best < found[f"test_{key}"]
    assert ("does better on the test set" in caplog.text) == ("does better than this run" in page) == loses
    if settings == ["job.objective=classify"]:
        assert loses, "after one epoch"


def test_they_can_be_left_out(tmp_path):
    run_job(compose_app([*QUICK, "job.baselines=false", "job.refit=false", "trainer.max_epochs=1"]), tmp_path)
    assert "baselines" not in json.loads((tmp_path / "metrics.json").read_text())
    assert "Comparison with simple methods" not in (tmp_path / "report.html").read_text()


@cases(case=[("classes", "accuracy"), ("values", "rmse")])
def test_a_tie_is_not_a_win(case):
    kind, figure = case
    exact = 25 / 28
    own = float(torch.tensor(exact, dtype=torch.float32))
    assert own != exact
    for value in (own, exact, own * (1 - 1e-8), own * (1 + 1e-8)):
        assert better({"simple": {figure: value}}, own, kind) == []
    ahead, behind = (exact + 0.01, exact - 0.01) if kind == "classes" else (exact - 0.01, exact + 0.01)
    assert better({"a": {figure: behind}, "b": {figure: ahead}}, own, kind) == [("b", ahead)]

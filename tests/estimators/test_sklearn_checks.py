"""scikit-learn's own checks of an estimator, and aeon's, whole. Minutes long: bash .ci/run with LANES=estimators."""

import warnings

import numpy as np
import pytest

from encoders import SequenceClassifier, SequenceEncoder, SequenceRegressor

pytestmark = pytest.mark.slow
checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is not installed")

QUICK = dict(hidden_size=8, num_layers=1, max_epochs=8, learning_rate=1e-2, random_state=0)


@checks.parametrize_with_checks([kind("gru", **QUICK) for kind in
                                 (SequenceClassifier, SequenceRegressor, SequenceEncoder)])
def test_scikit_learn_finds_an_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def adapted(base, kind):
    """An estimator of aeon's whose work is done by one of ours: aeon checks its own classes only."""
    tags = {"capability:multivariate": True, "capability:unequal_length": True, "capability:missing_values": True,
            "X_inner_type": ["np-list", "numpy3D"]}

    def init(self):
        super(made, self).__init__()

    def fit(self, X, y):
        self.model_ = kind("gru", **{**QUICK, "max_epochs": 2}, missing="mean").fit(X, y)
        return self

    body = {"_tags": tags, "__init__": init, "_fit": fit, "_predict": lambda self, X: self.model_.predict(X)}
    if kind is SequenceClassifier:
        body["_predict_proba"] = lambda self, X: self.model_.predict_proba(X)
    made = type(f"Adapted{kind.__name__}", (base,), {**body, "__module__": __name__})
    globals()[made.__name__] = made  # where pickle looks for it
    return made


def aeon_checks():
    try:
        from aeon.classification.base import BaseClassifier
        from aeon.regression.base import BaseRegressor
        from aeon.testing.estimator_checking._yield_estimator_checks import _yield_all_aeon_checks
    except ImportError:
        return []
    pairs = ((BaseClassifier, SequenceClassifier), (BaseRegressor, SequenceRegressor))
    return [check for base, kind in pairs for check in _yield_all_aeon_checks(adapted(base, kind)())]


@pytest.mark.parametrize("check", aeon_checks() or [None], ids=lambda check: getattr(check, "func", check).__name__
                         if check is not None else "aeon is not installed")
def test_aeon_finds_an_estimator(check):
    if check is None:
        pytest.skip("aeon is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()


def test_it_goes_into_pipelines_and_searches():
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline

    X = np.random.RandomState(0).randn(40, 1, 12) + np.repeat([0.0, 3.0], 20)[:, None, None]
    y = np.repeat(["low", "high"], 20)
    model = SequenceClassifier("gru", **QUICK)
    assert clone(model).get_params() == model.get_params()
    assert cross_val_score(model, X, y, cv=2).min() > 0.9
    found = GridSearchCV(model, {"encoder": ["gru", "delta_net"], "hidden_size": [8]}, cv=2).fit(X, y)
    assert found.best_score_ > 0.9 and found.best_estimator_.predict(X).tolist() == y.tolist()
    assert make_pipeline(SequenceEncoder("gru", **QUICK), LogisticRegression()).fit(X, y).score(X, y) > 0.9

"""Replacements for the parts of scikit-learn that the estimators need, if it is not installed."""

import inspect
from typing import Any, Callable, Dict, List, Protocol

import numpy as np

__all__ = ["BaseEstimator", "ClassifierMixin", "NotFittedError", "RegressorMixin", "TransformerMixin"]


class NotFittedError(ValueError, AttributeError):
    """An estimator was used before it was fitted."""


class BaseEstimator:
    """``get_params`` and ``set_params`` over the arguments of ``__init__``."""

    @classmethod
    def _get_param_names(cls) -> List[str]:
        return sorted(name for name in inspect.signature(cls.__init__).parameters if name != "self")

    def get_params(self, deep: bool = True) -> Dict[str, Any]:
        """The parameters by name; ``deep`` changes nothing, they hold no estimators."""
        return {name: getattr(self, name) for name in self._get_param_names()}

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name. Raises ValueError for an unknown name."""
        known = self._get_param_names()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: {known!r}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: one.default for name, one in inspect.signature(type(self).__init__).parameters.items()}
        given = {name: value for name, value in self.get_params().items() if repr(value) != repr(defaults[name])}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


class Predicts(Protocol):
    """An object that predicts, as ``score`` of the mixins needs."""

    def predict(self, X: Any) -> Any:
        """For each sequence."""


class Transforms(Protocol):
    """An object that fits and transforms, as ``fit_transform`` needs."""

    @property
    def fit(self) -> Callable[..., Any]:
        """``fit(X, y, **more)`` gives the estimator itself."""

    def transform(self, X: Any) -> Any:
        """For each sequence."""


class ClassifierMixin:
    """``score`` is the accuracy."""

    _estimator_type = "classifier"

    def score(self: Predicts, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the sequences whose class is predicted, each counted by its weight."""
        right = np.asarray(self.predict(X)) == np.asarray(y)
        return float(np.average(right, weights=sample_weight))


class RegressorMixin:
    """``score`` is R squared."""

    _estimator_type = "regressor"

    def score(self: Predicts, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R squared; for several values their mean."""
        y = np.asarray(y, dtype=np.float64)
        found = np.asarray(self.predict(X), dtype=np.float64).reshape(y.shape)
        mean = np.average(y, axis=0, weights=sample_weight)
        missed, spread = (np.average(square, axis=0, weights=sample_weight) for square in
                          ((y - found) ** 2, (y - mean) ** 2))
        perfect = np.where(missed == 0, 1.0, 0.0)
        return float(np.mean(np.where(spread > 0, 1 - missed / np.where(spread > 0, spread, 1.0), perfect)))


class TransformerMixin:
    """``fit_transform`` calls ``fit``, then ``transform``."""

    def fit_transform(self: Transforms, X: Any, y: Any = None, **more: Any) -> Any:
        """``fit(X, y).transform(X)``."""
        return self.fit(X, y, **more).transform(X)

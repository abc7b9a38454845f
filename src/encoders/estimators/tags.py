"""The base classes of scikit-learn if it is installed, otherwise small replacements; and the tags that it needs."""

from typing import Any

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin
    from sklearn.exceptions import NotFittedError
except ModuleNotFoundError:
    from encoders.estimators.plain import (
        BaseEstimator,
        ClassifierMixin,
        NotFittedError,
        RegressorMixin,
        TransformerMixin,
    )

__all__ = ["BaseEstimator", "ClassifierMixin", "NotFittedError", "RegressorMixin", "TaggedEstimator",
           "TransformerMixin", "check_is_fitted"]


class TaggedEstimator(BaseEstimator):
    """Declares the accepted input: series ``[n, time]`` and ``[n, channels, time]``, and NaN if ``missing`` allows
    it."""

    missing: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self.missing not in (None, "error")
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")


def check_is_fitted(estimator: Any, attribute: str) -> None:
    """Raises NotFittedError where ``fit`` has not been called."""
    if not hasattr(estimator, attribute):
        raise NotFittedError(f"This {type(estimator).__name__} instance is not fitted yet. Call 'fit' with appropriate "
                             "arguments before using this estimator.")

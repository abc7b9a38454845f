"""Sequences to numbers."""

from typing import Any

import numpy as np

from encoders.estimators.base import SequenceEstimator
from encoders.estimators.labels import group_numbers, target_values
from encoders.estimators.tags import RegressorMixin
from encoders.training.data.sequences import SequenceData, SequenceSet

__all__ = ["SequenceRegressor"]


class SequenceRegressor(RegressorMixin, SequenceEstimator):
    """One number, or several, for each sequence.

    scikit-learn's and aeon's interface; arguments and training: `encoders.estimators.base.SequenceEstimator`.

    Attributes:
        history_: one row of figures for each epoch.
        encoder_, task_, pipeline_, config_: the trained parts, the same as in the folder of a run.

    Example:
        >>> import numpy as np
        >>> y = np.linspace(0, 1, 40)
        >>> X = [np.full((1, 8 + i % 5), value) for i, value in enumerate(y)]  # uneven: a list of [channels, time]
        >>> model = SequenceRegressor("gru", hidden_size=8, max_epochs=20, random_state=0).fit(X, y)
        >>> model.predict(X).shape, model.score(X, y) > 0.5
        ((40,), True)
    """

    _objectives = ("regress",)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # scikit-learn tests it on a table whose columns are not a series
        return tags

    def fit(self, X: Any, y: Any, groups: Any = None) -> "SequenceRegressor":
        """Train on sequences and return the estimator itself.

        Args:
            X: sequences, see ``layout``.
            y: ``[n]`` or ``[n, K]`` finite numbers.
            groups: ``[n]``; sequences of one group (e.g. a person) stay together if some are held out to choose the
                epoch.

        Raises:
            InputError, DataError, ConfigError: invalid data or settings; all are subclasses of ValueError.
        """
        sequences = self._read(X)
        count = len(sequences.values)
        values = target_values(y, count, f"{type(self).__name__}.fit")
        part = SequenceSet(sequences.values, values, group_numbers(groups, count))
        names = ["target"] if values.shape[1] == 1 else [f"target_{i + 1}" for i in range(values.shape[1])]
        data = SequenceData(part, None, None, part.sequences[0].shape[1], target_names=names,
                            schema=sequences.schema())
        self._fit(data, "regress")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The predicted numbers for the sequences ``X``: ``[n]`` or ``[n, K]`` float64, in the units of ``y``."""
        found = np.asarray(self._answers(X, "predict").values)
        return found[:, 0] if found.shape[1] == 1 else found

"""Sequences to classes."""

from typing import Any, Dict, Mapping

import numpy as np

from encoders.estimators.base import SequenceEstimator
from encoders.estimators.labels import class_labels, group_numbers, names_of
from encoders.estimators.tags import ClassifierMixin
from encoders.training.data.sequences import SequenceData, SequenceSet

__all__ = ["SequenceClassifier"]


class SequenceClassifier(ClassifierMixin, SequenceEstimator):
    """One class for each sequence.

    scikit-learn's and aeon's interface; arguments and training: `encoders.estimators.base.SequenceEstimator`.

    Attributes:
        classes_: the sorted classes, in the order of the columns of `predict_proba`.
        history_: one row of figures for each epoch.
        encoder_, task_, pipeline_, config_: the trained parts, the same as in the folder of a run.

    Example:
        >>> import numpy as np
        >>> rng = np.random.RandomState(0)
        >>> X = rng.randn(40, 1, 12) + np.repeat([0.0, 3.0], 20)[:, None, None]  # [n, channels, time]
        >>> y = np.repeat(["low", "high"], 20)
        >>> model = SequenceClassifier("gru", hidden_size=8, max_epochs=8, random_state=0).fit(X, y)
        >>> model.predict(X[[0, -1]]).tolist(), model.score(X, y) > 0.9
        (['low', 'high'], True)
    """

    _objectives = ("classify",)

    def fit(self, X: Any, y: Any, groups: Any = None) -> "SequenceClassifier":
        """Train on sequences and return the estimator itself.

        Args:
            X: sequences, see ``layout``.
            y: ``[n]`` classes: integers or strings.
            groups: ``[n]``; sequences of one group (e.g. a person) stay together if some are held out to choose the
                epoch.

        Raises:
            InputError, DataError, ConfigError: invalid data or settings; all are subclasses of ValueError.
        """
        sequences = self._read(X)
        labels = class_labels(y, len(sequences.values), f"{type(self).__name__}.fit")
        part = SequenceSet(sequences.values, labels.targets, group_numbers(groups, len(labels.targets)))
        data = SequenceData(part, None, names_of(labels.classes), part.sequences[0].shape[1],
                            schema=sequences.schema())
        self._fit(data, "classify")
        self.classes_ = labels.classes
        return self

    def _facts(self) -> Dict[str, Any]:
        return {"classes": self.classes_.tolist(), "dtype": self.classes_.dtype.str if self.classes_.dtype != object
                else "object"}

    def _adopt(self, facts: Mapping[str, Any]) -> None:
        names = facts.get("classes", self.task_.spec.names)  # classes of a run of the application are text
        self.classes_ = np.array(names, dtype=facts.get("dtype"))

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class for the sequences ``X``: ``[n, classes]`` float32, in the order of
        ``classes_``."""
        return np.asarray(self._answers(X, "predict_proba").probabilities)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithm of the probabilities that `predict_proba` gives for ``X``."""
        return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each of the sequences ``X``: ``[n]``."""
        found = np.asarray(self._answers(X, "predict").predicted)
        return self.classes_[found]

"""Sequences to embeddings."""

from typing import Any, List, Optional

import numpy as np
import torch

from encoders.estimators.base import SequenceEstimator
from encoders.estimators.labels import class_labels, group_numbers, looks_like_classes, names_of, target_values
from encoders.estimators.tags import TransformerMixin, check_is_fitted
from encoders.training.data.sequences import SequenceData, SequenceSet

__all__ = ["SequenceEncoder"]


class SequenceEncoder(TransformerMixin, SequenceEstimator):
    """One vector for each sequence, for any estimator of scikit-learn after it in a pipeline.

    Trained on ``y``: to predict classes (strings, integers) or numbers (fractions, tables); without ``y``, each
    next step, with a causal encoder. Arguments and training: `encoders.estimators.base.SequenceEstimator`.

    Attributes:
        history_: one row of figures for each epoch.
        encoder_, task_, pipeline_, config_: what was trained, as a run's folder holds it.

    Example:
        >>> import numpy as np
        >>> X = np.random.RandomState(0).randn(20, 2, 15)  # [n, channels, time]
        >>> SequenceEncoder("gru", hidden_size=8, max_epochs=1, random_state=0).fit_transform(X).shape
        (20, 8)
    """

    _objectives = ("classify", "regress", "next_step")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "SequenceEncoder":
        """Train.

        Args:
            X: sequences, see ``layout``; without ``y`` of two steps or more.
            y: ``[n]`` classes, ``[n]`` or ``[n, K]`` numbers, or None.
            groups: ``[n]``; sequences of one group (a person) are on one side of the split that chooses the epoch.

        Raises:
            InputError, DataError, ConfigError: invalid data or settings; all are ValueErrors.
        """
        sequences, who = self._read(X), f"{type(self).__name__}.fit"
        count, channels = len(sequences.values), sequences.values[0].shape[1]
        numbers = group_numbers(groups, count)
        more: Any = {"schema": sequences.schema()}
        classes: Optional[List[str]] = None
        if y is None:
            objective, targets = "next_step", torch.zeros(count, 1)
        elif looks_like_classes(y):
            objective, labels = "classify", class_labels(y, count, who)
            classes, targets = names_of(labels.classes), labels.targets
        else:
            objective, targets = "regress", target_values(y, count, who)
            more["target_names"] = [f"target_{i + 1}" for i in range(targets.shape[1])]
        part = SequenceSet(sequences.values, targets, numbers)
        self._fit(SequenceData(part, None, classes, channels, **more), objective)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """``[n, hidden_size]`` float32: the embedding of each sequence, as ``job=encode`` writes it."""
        return self._embeddings(X, "transform")

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``["sequenceencoder0", ...]``."""
        check_is_fitted(self, "encoder_")
        size = self.encoder_.config.hidden_size
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(size)], dtype=object)

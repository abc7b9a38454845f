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
    """One vector for each sequence, e.g. for another estimator of scikit-learn after it in a pipeline.

    It learns to predict ``y``: classes (strings, integers) or numbers (fractions, tables); without ``y``, a causal
    encoder learns to predict each next step. Arguments and training: `encoders.estimators.base.SequenceEstimator`.

    Attributes:
        history_: one row of figures for each epoch.
        encoder_, task_, pipeline_, config_: the trained parts, the same as in the folder of a run.

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
        """Train on sequences and return the estimator itself.

        Args:
            X: sequences, see ``layout``; without ``y`` of two steps or more.
            y: ``[n]`` classes, ``[n]`` or ``[n, K]`` numbers, or None.
            groups: ``[n]``; sequences of one group (e.g. a person) stay together if some are held out to choose the
                epoch.

        Raises:
            InputError, DataError, ConfigError: invalid data or settings; all are subclasses of ValueError.
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
        """The embeddings of the sequences ``X``, as ``job=encode`` writes them: ``[n, hidden_size]`` float32."""
        return self._embeddings(X, "transform")

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, ``["sequenceencoder0", ...]``; ``input_features`` is ignored."""
        check_is_fitted(self, "encoder_")
        size = self.encoder_.config.hidden_size
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(size)], dtype=object)

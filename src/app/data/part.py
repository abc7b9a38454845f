"""The content of one table."""

from typing import Dict, List, NamedTuple, Optional

import numpy as np

from app.data.views import Views

__all__ = ["Part"]


class Part(NamedTuple):
    """One table, read.

    Attributes:
        sequences: ``[T_i, D]`` float64 each.
        features: the names of their columns.
        channels: D.
        labels: numbers of label names, one for each sequence or for each row, in order; -1 for a missing label.
        label_names: names by number.
        values: targets ``[N, K]``, or ``[rows, K]`` for each step; float64.
        groups: numbers of groups, one for each sequence.
        group_names: names by number.
        names: names of the sequences, if they have some.
        files: files of the sequences.
        copies: columns that reveal the target, and in which way.
    """

    sequences: Views
    features: List[str]
    channels: int
    labels: Optional[np.ndarray]
    label_names: List[str]
    values: Optional[np.ndarray]
    groups: Optional[np.ndarray]
    group_names: List[str]
    names: Optional[List[str]]
    files: List[str]
    copies: Dict[str, str]

"""What reading one table gives."""

from typing import Dict, List, NamedTuple, Optional

import numpy as np

from app.data.views import Views

__all__ = ["Part"]


class Part(NamedTuple):
    """One table, read.

    Attributes:
        sequences: ``[T_i, D]`` float64 each.
        features: the columns that they are made of.
        channels: D.
        labels: numbers of names, one a sequence, or one a row in their order; -1 where there is none.
        label_names: by number.
        values: ``[N, K]``, or ``[rows, K]`` per step; float64.
        groups: one a sequence, as ``labels``.
        group_names: by number.
        names: of the sequences, where they have some.
        files: that they come from.
        copies: columns that reveal the target, and how.
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

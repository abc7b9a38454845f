"""MiniRocket, if aeon or sktime is installed."""

from typing import Any, Callable, List, Optional

import numpy as np
from torch import Tensor

__all__ = ["find_rocket", "padded"]

_SHORTEST = 9  # number of steps that its kernels need


def find_rocket(values: bool) -> Optional[Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]]:
    """``rocket(x, y, test) -> predicted`` for ``[N, D, T]`` float32 series; None if no package with it is installed.

    Args:
        values: predict numbers, not classes.
    """
    made = _aeon(values) or _sktime(values)
    return None if made is None else lambda x, y, test: np.asarray(made.fit(x, y).predict(test))


def padded(count: int, get: Callable[[int], Tensor], length: int) -> np.ndarray:
    """``[count, D, length]`` float32: shorter series are continued with their last value, longer ones are cut."""
    rows: List[np.ndarray] = []
    for i in range(count):
        x = get(i).numpy().T[:, :length]
        rows.append(np.pad(x, ((0, 0), (0, max(length, _SHORTEST) - x.shape[1])), mode="edge"))
    return np.stack(rows).astype(np.float32)


def _aeon(values: bool) -> Any:
    try:
        if values:
            from aeon.regression.convolution_based import MiniRocketRegressor as Rocket
        else:
            from aeon.classification.convolution_based import MiniRocketClassifier as Rocket
    except ImportError:
        return None
    return Rocket(random_state=0)


def _sktime(values: bool) -> Any:
    try:
        if values:
            from sktime.regression.kernel_based import RocketRegressor as Rocket
        else:
            from sktime.classification.kernel_based import RocketClassifier as Rocket
    except ImportError:
        return None
    return Rocket(rocket_transform="minirocket", random_state=0)

"""Targets in the usual forms of Python."""

import warnings
from typing import Any, List, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from encoders.errors import InputError

__all__ = ["Labels", "class_labels", "group_numbers", "looks_like_classes", "names_of", "target_values"]


class Labels(NamedTuple):
    """The sorted classes, and ``[n]`` int64 indices into them."""

    classes: np.ndarray
    targets: Tensor


def class_labels(y: Any, count: int, who: str) -> Labels:
    """One class for each of ``count`` sequences: numbers or strings.

    Raises:
        InputError: there are none, their number is wrong, one is missing, or they are fractions.

    Example:
        >>> class_labels(["no", "yes", "no"], 3, "fit").targets.tolist()
        [0, 1, 0]
    """
    found = _column(_given(y, who), count, who)
    if found.dtype.kind == "f" and not bool((np.isfinite(found) & (found == np.floor(found))).all()):
        raise InputError(f"{who}: Unknown label type: y must be classes; got numbers with a fraction, NaN or "
                         "infinity; use SequenceRegressor, or y.astype(str)")
    if found.dtype.kind not in "biufUSO":
        raise InputError(f"{who}: Unknown label type: y must be numbers or strings; got {found.dtype}")
    if found.dtype == object and not (all(isinstance(value, str) for value in found)
                                      or all(isinstance(value, (int, np.integer)) for value in found)):
        kinds = sorted({type(value).__name__ for value in found})
        raise InputError(f"{who}: Unknown label type: y must be all strings or all integers; got {', '.join(kinds)}")
    classes, targets = np.unique(found, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{who}: y must have at least two classes; got one class: {classes[0]}")
    return Labels(classes, torch.from_numpy(targets.reshape(-1).astype(np.int64)))


def target_values(y: Any, count: int, who: str) -> Tensor:
    """Numbers to predict, ``[count, K]`` float64.

    Raises:
        InputError, TypeError: there are none, their number is wrong, or they are not finite numbers.
    """
    found = _given(y, who)
    if found.ndim != 2 or found.shape[1] == 1:
        found = _column(found, count, who)
    _check_count(found, count, who)
    try:
        values = found.astype(np.float64).reshape(count, -1)
    except (TypeError, ValueError) as problem:
        raise type(problem)(f"{who}: y must be numbers; {problem}") from None
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise InputError(f"{who}: y must be finite (no NaN, no infinity); got {values[row].tolist()} at {row}")
    return torch.from_numpy(values)


def looks_like_classes(y: Any) -> bool:
    """Whether targets are classes by their type: strings, booleans and integers are, fractions and tables are not."""
    found = np.asarray(y)
    whole = found.dtype.kind == "f" and bool((found == np.floor(found)).all())
    return found.squeeze().ndim <= 1 and (found.dtype.kind in "biuUSO" or whole)


def group_numbers(groups: Any, count: int, who: str = "fit") -> Optional[Tensor]:
    """``[count]`` int64 for groups of any kind of name; None for None."""
    if groups is None:
        return None
    found = np.asarray(groups)
    if found.shape != (count,):
        raise InputError(f"{who}: groups must be one for each of the {count} sequences; got shape {found.shape}")
    return torch.from_numpy(np.unique(found, return_inverse=True)[1].reshape(-1).astype(np.int64))


def names_of(classes: np.ndarray) -> List[str]:
    """Classes as text."""
    return [str(value) for value in classes.tolist()]


def _given(y: Any, who: str) -> np.ndarray:
    if y is None:
        raise InputError(f"{who} requires y to be passed, but the target y is None")
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    found = np.asarray(y)
    if found.dtype.kind == "c":
        raise InputError(f"{who}: Complex data not supported: y must be real")
    return found


def _column(found: np.ndarray, count: int, who: str) -> np.ndarray:
    if found.ndim == 2 and found.shape[1] == 1:
        message = "A column-vector y was passed when a 1d array was expected. Change the shape of y to (n_samples,)"
        warnings.warn(message, _conversion_warning(), stacklevel=4)
        found = found[:, 0]
    if found.ndim != 1:
        raise InputError(f"{who}: y must have one dimension; got shape {found.shape}")
    _check_count(found, count, who)
    return found


def _check_count(found: np.ndarray, count: int, who: str) -> None:
    if len(found) != count:
        raise InputError(f"{who}: y must have one value for each of the {count} sequences of X; got {len(found)}")


def _conversion_warning() -> Any:
    try:
        from sklearn.exceptions import DataConversionWarning
    except ModuleNotFoundError:
        return UserWarning
    return DataConversionWarning

"""Sequences in the usual forms of Python."""

from typing import Any, List, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from encoders.errors import InputError
from encoders.schema import Column, InputSchema

__all__ = ["LAYOUTS", "Sequences", "read_arrays"]

LAYOUTS = ("channels_first", "channels_last")
"""Orders of the dimensions of a sequence: ``[channels, time]`` as in aeon, ``[time, channels]`` as in PyTorch."""


class Sequences(NamedTuple):
    """Sequences in a uniform format.

    Attributes:
        values: ``[T_i, C]`` float64 each.
        names: names of the channels, if there are any (columns of data frames). columns: number of columns of a table
            ``[n, time]`` with one row for each sequence; otherwise None.
    """

    values: List[Tensor]
    names: Optional[List[str]] = None
    columns: Optional[int] = None

    def schema(self) -> Optional[InputSchema]:
        """For training; None without names."""
        return None if self.names is None else InputSchema(tuple(map(Column, self.names)))


def read_arrays(X: Any, layout: str, who: str, missing: bool = False) -> Sequences:
    """The sequences of ``X``.

    Args:
        X: ``[n, time]``, one channel; ``[n, channels, time]`` (with ``layout="channels_last"``
            ``[n, time, channels]``); or a list of sequences of any lengths: ``[time]``, ``[channels, time]`` (or
            ``[time, channels]``), or data frames with one row for each step and one column for each channel. numpy
            arrays, torch tensors or nested lists.
        layout: one of `LAYOUTS`.
        who: the caller, for messages.
        missing: whether values may be missing (NaN).

    Returns:
        The sequences in a uniform format.

    Raises:
        InputError, TypeError: there are no numbers or no steps, the shape is wrong, or a value is missing or infinite.

    Example:
        >>> [list(x.shape) for x in read_arrays(np.zeros((2, 3, 50)), "channels_first", "fit").values]
        [[50, 3], [50, 3]]
        >>> [list(x.shape) for x in read_arrays([[1, 2, 3], [4, 5]], "channels_first", "fit").values]
        [[3, 1], [2, 1]]
    """
    if layout not in LAYOUTS:
        raise InputError(f"{who}: layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    if hasattr(X, "toarray"):
        raise TypeError(f"{who}: X must be dense; got a sparse {type(X).__name__}; use X.toarray()")
    parts = _parts(X, layout, who)
    columns = parts.shape[1] if isinstance(parts, np.ndarray) and parts.ndim == 2 else None
    if not len(parts):
        raise InputError(f"{who}: X must have at least one sequence; got 0 sample(s) (a minimum of 1 is required)")
    names = [str(name) for name in parts[0].columns] if hasattr(parts[0], "columns") else None
    values = [_sequence(part, i, layout, names, who) for i, part in enumerate(parts)]
    width = values[0].shape[1]
    for i, x in enumerate(values):
        if x.shape[1] != width:
            raise InputError(f"{who}: all sequences must have the same channels; got {width} in the first and "
                             f"{x.shape[1]} in sequence {i}, by layout={layout!r}: "
                             f"{_words(layout)}; is it the other one?")
        _check_values(x, i, missing, who)
    return Sequences(values, names, columns)


def _parts(X: Any, layout: str, who: str) -> Any:
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if hasattr(X, "to_numpy"):  # a data frame or series: a row is a sequence
        X = X.to_numpy()
    elif hasattr(X, "__array__"):
        X = np.asarray(X)
    if isinstance(X, np.ndarray) and not (X.dtype == object and X.ndim == 1):
        if X.ndim == 3 or (X.ndim == 2 and X.shape[1]):
            return X
        if X.ndim == 2:
            raise InputError(f"{who}: X must have at least one step; got 0 feature(s) (shape={X.shape}) while a "
                             "minimum of 1 is required.")
        raise InputError(f"{who}: X must have two dimensions [n, time] or three, {_words(layout, 'n, ')}; got "
                         f"{X.ndim}. Reshape your data: X.reshape(1, -1) is one sequence of one channel")
    if _is_table(X):
        return np.array(X)
    if not isinstance(X, (list, tuple, np.ndarray)):
        raise TypeError(f"{who}: X must be an array or a list of arrays; got {type(X).__name__}")
    if len(X) and np.ndim(X[0]) == 0 and not hasattr(X[0], "columns"):
        raise InputError(f"{who}: X must be sequences; got a list of {type(X[0]).__name__}. Reshape your data: [X] is "
                         "one sequence of one channel")
    return X


def _is_table(X: Any) -> bool:
    """Whether X is a table: lists of numbers of one length are its rows; a list of arrays is a list of sequences."""
    rows = isinstance(X, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in X)
    return rows and len({len(row) for row in X}) == 1 and all(np.ndim(value) == 0 for value in X[0])


def _sequence(part: Any, number: int, layout: str, names: Optional[List[str]], who: str) -> Tensor:
    where = f"{who}: sequence {number}"
    if names is not None:
        if not hasattr(part, "columns"):
            raise InputError(f"{where} must be a data frame, as the first one is; got {type(part).__name__}")
        given = [str(name) for name in part.columns]
        part = part.to_numpy()[:, InputSchema(tuple(map(Column, names))).match(given, where)]
        layout = "channels_last"
    x = _numbers(part, where)
    if x.ndim == 1:
        x = x[:, None]
    elif x.ndim == 2:
        x = x.T if layout == "channels_first" else x
    else:
        raise InputError(f"{where} must be [time] or {_words(layout)}; got {x.ndim} dimensions")
    if 0 in x.shape:
        raise InputError(f"{where} must have at least one step and one channel; got shape {tuple(np.shape(part))}")
    return torch.from_numpy(np.ascontiguousarray(x))


def _numbers(part: Any, where: str) -> np.ndarray:
    if isinstance(part, Tensor):
        part = part.detach().cpu().numpy()
    try:
        x = np.asarray(part)
        if x.dtype.kind == "c":
            raise InputError(f"{where}: Complex data not supported: it must be real numbers")
        if x.dtype.kind not in "biufO":
            raise InputError(f"{where} must be numbers; got {x.dtype}")
        return x.astype(np.float64)
    except InputError:
        raise
    except (TypeError, ValueError) as problem:
        raise type(problem)(f"{where} must be numbers; {problem}") from None


def _check_values(x: Tensor, number: int, missing: bool, who: str) -> None:
    wrong = x.isinf() if missing else ~x.isfinite()
    if bool(wrong.any()):
        step, channel = wrong.nonzero()[0].tolist()
        value = float(x[step, channel])
        hint = "; missing='mean' or 'forward' says what to put in place of NaN" if value != value else ""
        raise InputError(f"{who}: X must be finite; got {'NaN' if value != value else value} in sequence {number}, "
                         f"channel {channel}, step {step}{hint}")


def _words(layout: str, before: str = "") -> str:
    return f"[{before}channels, time]" if layout == "channels_first" else f"[{before}time, channels]"

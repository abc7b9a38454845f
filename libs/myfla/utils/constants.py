"""Tensors of eager decoding steps that depend only on numbers and sizes; each is made once."""

from typing import Any, Dict, Tuple

import torch

__all__ = ["bags_of_rows", "number"]

MOST = 64
"""Largest number of tensors of `number` that are kept; beyond it all are made again."""

MOST_BAGS = 8
"""Largest number of results of `bags_of_rows` that are kept: a model has one or two shapes of states."""

_numbers: Dict[Any, torch.Tensor] = {}
_bags: Dict[Any, Tuple[torch.Tensor, torch.Tensor]] = {}


def number(value: float, dtype: torch.dtype) -> torch.Tensor:
    """A number as a tensor ``[]`` on the CPU, which must not be written to.

    An operation makes a tensor of each Python number among its arguments, which takes longer than its computation: two
        of them take an eighth of a decoding step of one row.

    Example:
        >>> number(0.5, torch.float32)
        tensor(0.5000)
    """
    found = _numbers.get((value, dtype))
    if found is None:
        found = torch.tensor(value, dtype=dtype, device="cpu")
        _keep(_numbers, MOST, (value, dtype), found, found)
    return found


def bags_of_rows(matrices: int, each: int, rows: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The bags of ``torch.embedding_bag`` that hold all rows of a matrix, ``each`` times for each of many matrices.

    Making them takes a third of the time of such a call.

    Args:
        matrices: how many, one after another in the table.
        each: bags of a matrix.
        rows: of a matrix.

    Returns:
        the indices ``[matrices * each * rows]`` and the offsets ``[matrices * each]`` in int32, not to be written to.

    Example:
        >>> [x.tolist() for x in bags_of_rows(2, 2, 1)]
        [[0, 0, 1, 1], [0, 1, 2, 3]]
    """
    found = _bags.get((matrices, each, rows))
    if found is None:
        index = torch.arange(matrices * rows, dtype=torch.int32, device="cpu").view(matrices, 1, rows)
        index = index.expand(matrices, each, rows).reshape(-1)
        found = index, torch.arange(0, matrices * each * rows, rows, dtype=torch.int32, device="cpu")
        _keep(_bags, MOST_BAGS, (matrices, each, rows), found, index)
    return found


def _keep(kept: Dict[Any, Any], most: int, key: Any, made: Any, tensor: torch.Tensor) -> None:
    """Store a tensor, unless a mode has made something else in its place, such as a fake tensor."""
    if type(tensor) is torch.Tensor:
        if len(kept) >= most:
            kept.clear()
        kept[key] = made

"""Numbers of eager decoding steps as tensors, made once."""

from typing import Dict, Tuple

import torch

__all__ = ["number"]

MOST = 64
"""Kept at most; then they are made again."""

_kept: Dict[Tuple[float, torch.dtype], torch.Tensor] = {}


def number(value: float, dtype: torch.dtype) -> torch.Tensor:
    """A number as a tensor ``[]`` on the CPU, which must not be written to.

    An operation makes a tensor of each Python number that it is given, and that costs more than what it computes: two
    of them are an eighth of one row's decoding step. What a mode makes in place of a tensor (a fake one, say) is not
    kept.

    Example:
        >>> number(0.5, torch.float32)
        tensor(0.5000)
    """
    found = _kept.get((value, dtype))
    if found is None:
        found = torch.tensor(value, dtype=dtype, device="cpu")
        if type(found) is torch.Tensor:
            if len(_kept) >= MOST:
                _kept.clear()
            _kept[value, dtype] = found
    return found

"""Constants of eager decoding steps, made once."""

import functools
from typing import Any, Callable, Dict, TypeVar

import torch

__all__ = ["constant", "number"]

MOST = 16
"""Kept for each function; then they are made again."""

Made = TypeVar("Made")


def constant(make: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what a function of hashable arguments makes, a tensor or a tuple of them, for the next call.

    Nobody may write it. What is made under a mode that makes other tensors (fake ones, say) is not kept.

    Example:
        >>> @constant
        ... def ones(count): return torch.ones(count)
        >>> ones(2) is ones(2)
        True
    """
    kept: Dict[Any, Made] = {}

    @functools.wraps(make)
    def get(*key: Any) -> Made:
        found = kept.get(key)
        if found is None:
            found = make(*key)
            tensors = found if isinstance(found, tuple) else (found,)
            if all(type(x) is torch.Tensor for x in tensors):
                if len(kept) >= MOST:
                    kept.clear()
                kept[key] = found
        return found

    return get


@constant
def number(value: float, dtype: torch.dtype) -> torch.Tensor:
    """A number as a tensor ``[]`` on the CPU: operations make one of each Python number, which costs more than they do.

    Example:
        >>> number(0.5, torch.float32)
        tensor(0.5000)
    """
    return torch.tensor(value, dtype=dtype, device="cpu")

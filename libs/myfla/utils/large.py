"""Memory for large results on a CPU, taken up again when its tensor is gone.

A decoding step makes a new state and lets go of the old one. The C library maps large requests anew each time, and the
first touch of each 4 kB is a page fault: together more time than the step's arithmetic. So large states come from a few
mappings in huge pages, and a mapping is used again as soon as no tensor, view or array looks at it.
"""

import ctypes
import functools
import math
import mmap
import sys
from collections import deque
from typing import Any, Deque

import torch

__all__ = ["empty_large"]

LEAST = 1 << 19
"""Bytes from which on a tensor is large."""

KEPT = 128 << 20
"""Bytes of idle mappings that are kept at most."""

_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None) if sys.platform == "linux" else None
_idle: Deque[mmap.mmap] = deque()


def empty_large(*shape: int, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """``torch.empty``, for results that come again and again in the same size.

    Args:
        shape, dtype, device: of the tensor.

    Example:
        >>> empty_large(2, 3, dtype=torch.float32, device="cpu").shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * _element_size(dtype)
    kind = device if isinstance(device, torch.device) else torch.device(device)
    if size < LEAST or _ADVICE is None or kind.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _take(size)
    owner = _owner(size).from_buffer(memory)  # lives as long as a tensor looks at the memory
    owner.memory = memory
    return torch.frombuffer(owner, dtype=dtype).view(shape)


@functools.lru_cache(maxsize=None)
def _element_size(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


@functools.lru_cache(maxsize=64)
def _owner(size: int) -> Any:
    """So many bytes of a mapping that goes back to the idle ones when nobody has them any more.

    A ``__del__`` of its own, because a finalizer beside each would cost as much as all the rest.
    """
    fields = {"_type_": ctypes.c_char, "_length_": size, "__del__": lambda self, back=_give_back: back(self.memory)}
    return type("Owner", (ctypes.Array,), fields)


def _take(size: int) -> mmap.mmap:
    for _ in range(len(_idle)):
        try:
            memory = _idle.pop()
        except IndexError:  # another thread was faster
            break
        if len(memory) == size:
            return memory
        _idle.appendleft(memory)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        if _ADVICE is not None:
            memory.madvise(_ADVICE)
    except OSError:  # a system built without huge pages: ordinary ones are right too
        pass
    return memory


def _give_back(memory: mmap.mmap, idle: Deque[mmap.mmap] = _idle) -> None:
    idle.append(memory)
    try:
        while sum(map(len, tuple(idle))) > KEPT:
            idle.popleft()
    except (IndexError, RuntimeError):  # another thread was faster
        pass
    except (NameError, TypeError):  # the interpreter is ending and has taken the names away
        pass

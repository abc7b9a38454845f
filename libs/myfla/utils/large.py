"""Memory for large results on a CPU, taken up again when its tensor is gone.

A decoding step makes a new state and lets go of the old one; a training step does so with everything between its two
directions. The C library maps large requests anew each time, unless larger ones were freed before, and the first touch
of each 4 kB is a page fault: together easily as much time as the arithmetic. So large tensors come from mappings of a
few sizes, in huge pages, and a mapping is used again as soon as no tensor, view or array looks at it. Tensors begin
at different places within a page: what lies at the same place of many pages shares few lines of a cache.
"""

import ctypes
import functools
import itertools
import math
import mmap
import sys
import weakref
from collections import deque
from typing import Any, Deque, Dict, Optional

import torch

__all__ = ["empty_large"]

LEAST = 1 << 17
"""Bytes from which on a tensor is large: glibc's own bound for what it maps."""

KEPT = 128 << 20
"""Bytes of idle mappings that are kept at most."""

MOST = 4096
"""Mappings at one time; a process may have some 65 000, and others need some too."""

CLASSES = 8
"""Sizes of mappings between one power of two and the next: lengths that vary meet the same ones again."""

PAGE = 4096
STEP = 5 * 64
"""Bytes from where one tensor begins in its page to where the next does in its own: an odd number of cache lines."""


class _Mapping(mmap.mmap):
    """Memory of a large tensor, which begins at byte ``start``."""

    start = 0


_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None) if sys.platform == "linux" else None
_idle: Dict[int, Deque[_Mapping]] = {}
_used: Dict[int, int] = {}
"""When each size was last given back."""
_clock, _starts = itertools.count(), itertools.count(step=STEP)
_mappings: "weakref.WeakSet[_Mapping]" = weakref.WeakSet()


def empty_large(*shape: int, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """``torch.empty``, for results that come again and again.

    Args:
        shape, dtype, device: of the tensor.

    Example:
        >>> empty_large(2, 3, dtype=torch.float32, device="cpu").shape
        torch.Size([2, 3])
    """
    count = math.prod(shape)
    size = count * _element_size(dtype)
    kind = device if isinstance(device, torch.device) else torch.device(device)
    if size < LEAST or _ADVICE is None or kind.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = _class_of(size + PAGE)
    memory = _take(size)
    if memory is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return _within(memory, size, dtype, count).view(shape)


def _within(memory: _Mapping, size: int, dtype: torch.dtype, count: int) -> torch.Tensor:
    """So many numbers in a mapping of so many bytes, which has an owner as long as a tensor looks at it."""
    owner = _owner(size).from_buffer(memory)
    owner.memory = memory
    return torch.frombuffer(owner, dtype=dtype, count=count, offset=memory.start)


@functools.lru_cache(maxsize=None)
def _element_size(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


@functools.lru_cache(maxsize=1024)
def _class_of(size: int) -> int:
    """The bytes of the mapping that so many are put into, at most an eighth more."""
    step = (1 << (size - 1).bit_length() - 1) // CLASSES
    return -(-size // step) * step


@functools.lru_cache(maxsize=256)
def _owner(size: int) -> Any:
    """So many bytes of a mapping that goes back to the idle ones when nobody has them any more.

    A ``__del__`` of its own, because a finalizer beside each would cost as much as all the rest.
    """
    fields = {"_type_": ctypes.c_char, "_length_": size, "__del__": lambda self, back=_give_back: back(self.memory)}
    return type("Owner", (ctypes.Array,), fields)


def _take(size: int) -> Optional[_Mapping]:
    """An idle mapping or a new one; None where the system or this module gives no more."""
    waiting = _idle.get(size)
    if waiting:
        try:
            return waiting.pop()
        except IndexError:  # another thread was faster
            pass
    if len(_mappings) >= MOST:
        return None
    try:
        memory = _Mapping(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None
    _mappings.add(memory)
    memory.start = next(_starts) % PAGE
    try:
        if _ADVICE is not None:
            memory.madvise(_ADVICE)
    except OSError:  # a system built without huge pages: ordinary ones are right too
        pass
    return memory


def _give_back(memory: _Mapping) -> None:
    try:
        size = len(memory)
        _idle.setdefault(size, deque()).append(memory)
        _used[size] = next(_clock)
        while _idle_bytes() > KEPT:
            oldest = min((at for at, waiting in tuple(_idle.items()) if waiting), key=_used.__getitem__)
            _idle[oldest].popleft()
    except (IndexError, KeyError, RuntimeError, ValueError):  # another thread was faster
        pass
    except (AttributeError, NameError, TypeError):  # the interpreter is ending and has taken the names away
        pass


def _idle_bytes() -> int:
    return sum(size * len(waiting) for size, waiting in tuple(_idle.items()))

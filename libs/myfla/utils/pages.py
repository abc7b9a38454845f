"""Huge pages for results that the C library maps anew at every call."""

import ctypes
import mmap
import sys

import torch

__all__ = ["in_huge_pages"]

LEAST = 32 << 20
"""Bytes from which on glibc maps every request anew, and gives it back when it is freed."""

HUGE = 2 << 20
"""Bytes of a huge page, where a system has them; others take the advice as well or refuse it."""

_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)


def in_huge_pages(x: torch.Tensor) -> torch.Tensor:
    """A fresh tensor, unwritten, whose memory Linux is advised to fill with huge pages; x itself, an ordinary tensor.

    The first touch of a page is a fault. With 4 kB each, those of the results of a training step over 4096 tokens of 16
    heads take as long as a fifth of its arithmetic. The advice ends with the mapping, so that nothing of it stays.

    Example:
        >>> in_huge_pages(torch.empty(3)).shape
        torch.Size([3])
    """
    size = x.numel() * x.element_size()
    ordinary = type(x) is torch.Tensor and x.device.type == "cpu"
    if size < LEAST or not ordinary or _ADVICE is None or sys.platform != "linux":
        return x
    first, last = -(-x.data_ptr() // HUGE) * HUGE, (x.data_ptr() + size) // HUGE * HUGE
    _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(_ADVICE))
    return x


def _madvise() -> "ctypes._NamedFuncPointer":
    return ctypes.CDLL(None).madvise

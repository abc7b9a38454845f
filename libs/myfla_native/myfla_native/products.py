"""Products of one matrix with several weights side by side, as if these were one weight.

Everything is float32. ``x [..., D]`` and ``y [..., N]`` have M rows without gaps, at equal distances; weights are
``[N_p, D]`` without gaps, and N is the sum of the N_p.
"""

import ctypes
import functools
from typing import Any, Sequence

import torch

from myfla_native.library import declare, pays, threads

__all__ = ["inputs", "outputs", "products_pay", "weights"]

_product = declare("mn_joint_product", "n pi pi ii pp i n")
_OUTPUTS, _INPUTS, _WEIGHTS = 0, 1, 2


@functools.lru_cache(maxsize=None)
def products_pay() -> bool:
    """Whether these products take less time on this processor than PyTorch's. They do on AMD's, where MKL, which is
    Intel's, is slower than on Intel's."""
    return pays()


def outputs(x: torch.Tensor, given: Sequence[torch.Tensor], y: torch.Tensor) -> None:
    """``y = [x w_1^T, x w_2^T, ...]``, written to y."""
    _call(_OUTPUTS, x, y, given)


def inputs(y: torch.Tensor, given: Sequence[torch.Tensor], x: torch.Tensor) -> None:
    """``x = y_1 w_1 + y_2 w_2 + ...`` for the columns y_p of y, written to x."""
    _call(_INPUTS, x, y, given)


def weights(y: torch.Tensor, x: torch.Tensor, found: Sequence[torch.Tensor]) -> None:
    """``w_p = y_p^T x``, written to the tensors ``found``."""
    _call(_WEIGHTS, x, y, found)


def _call(kind: int, x: torch.Tensor, y: torch.Tensor, given: Sequence[torch.Tensor]) -> None:
    words: Any = ctypes.c_int64 * len(given)
    addresses, sizes = words(*[w.data_ptr() for w in given]), words(*[w.shape[0] for w in given])
    D = x.shape[-1]
    _product(kind, x.data_ptr(), _distance(x), y.data_ptr(), _distance(y), x.numel() // D, D, addresses, sizes,
             len(given), threads())  # fmt: skip


def _distance(x: torch.Tensor) -> int:
    """From one row to the next; without gaps, the strides of axes of length one mean nothing."""
    return x.shape[-1] if x.is_contiguous() else x.stride(-2)

"""A few rows times each of many matrices, as a recurrent step reads its state.

A batched product of so few rows reaches a fraction of the rate at which a CPU reads: 9 GB/s of 40. The same sums are
bags of an embedding, whose table is all rows of all matrices and whose weights are the vectors: that kernel goes along
each row once.
"""

from typing import Tuple

import torch

from myfla.utils.constants import constant

__all__ = ["read_rows"]

LEAST = 1 << 12
"""Elements of a matrix from which on a bag is worth its call."""

NARROWEST = 32
"""Numbers in a row from which on it is."""

_HAS_KERNEL = "fbgemm" in torch.backends.quantized.supported_engines
"""Whether this PyTorch has FBGEMM and the CPU can run it: elsewhere bags are plain loops."""


def read_rows(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """``rows @ matrices``, for each of M alone: the same bits for every M. Not differentiable.

    Args:
        rows: ``[..., R, K]``, contiguous, M times R of them.
        matrices: ``[..., K, V]``, contiguous, M of them.

    Returns:
        ``[..., R, V]``.

    Example:
        >>> read_rows(torch.ones(1, 2, 3), torch.ones(1, 3, 1)).flatten()
        tensor([3., 3.])
    """
    shape = rows.shape[:-1] + matrices.shape[-1:]
    key, value = matrices.shape[-2:]
    if key * value < LEAST or value < NARROWEST or not _has_kernel_for(matrices):
        return torch.bmm(rows.view(-1, rows.shape[-2], key), matrices.view(-1, key, value)).view(shape)
    index, starts = _bags(rows.numel(), rows.shape[-2], key)
    return torch.embedding_bag(matrices.view(-1, value), index, starts, False, 0, False, rows.view(-1))[0].view(shape)


def _has_kernel_for(x: torch.Tensor) -> bool:
    return _HAS_KERNEL and x.dtype is torch.float32 and type(x) is torch.Tensor and x.device.type == "cpu"


@constant
def _bags(total: int, each: int, key: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The table's rows for every bag one after another, and where each bag starts."""
    rows = torch.arange(total // each, dtype=torch.int32, device="cpu").view(-1, 1, key)
    return rows.repeat(1, each, 1).view(-1), torch.arange(0, total, key, dtype=torch.int32, device="cpu")

"""A few rows times each of many matrices, as a recurrent step reads its state.

A batched product of so few rows reaches a fraction of the rate at which a CPU reads: 9 GB/s of 40. The same sums are
bags of an embedding, whose table is all rows of all matrices and whose weights are the vectors: that kernel goes along
each row once.
"""

from typing import Callable, Tuple

import torch

from myfla.utils.constants import constant

__all__ = ["reader"]

LEAST = 1 << 17
"""Elements of all matrices from which on bags are worth their call."""

NARROWEST = 16
"""Numbers in a row from which on they are."""

_HAS_KERNEL = "fbgemm" in torch.backends.quantized.supported_engines
"""Whether this PyTorch has FBGEMM and the CPU can run it: elsewhere bags are plain loops."""

Reader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def reader(states: torch.Tensor) -> Reader:
    """Who multiplies rows and matrices in a call: one for all its tokens and blocks, which so have the same bits.

    Args:
        states: all matrices, ``[..., K, V]``.

    Returns:
        ``read(rows [..., R, K], matrices [..., K, V]) -> [..., R, V]``, of contiguous tensors with R rows for each
        matrix; each product has the bits that it has alone. Not differentiable.

    Example:
        >>> states = torch.ones(1, 3, 1)
        >>> reader(states)(torch.ones(1, 2, 3), states).flatten()
        tensor([3., 3.])
    """
    if (
        states.numel() >= LEAST
        and states.shape[-1] >= NARROWEST
        and _HAS_KERNEL
        and states.dtype is torch.float32
        and type(states) is torch.Tensor
        and states.device.type == "cpu"
    ):
        return _read_bags
    return torch.bmm if states.dim() == 3 else _multiply


def _read_bags(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    shape, value = rows.shape, matrices.shape[-1]
    index, starts = _bags(rows.numel(), shape[-2], shape[-1])
    bags = torch.embedding_bag(matrices.view(-1, value), index, starts, False, 0, False, rows.view(-1))[0]
    return bags.view(shape[:-1] + (value,))


def _multiply(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    shape, (key, value) = rows.shape, matrices.shape[-2:]
    return torch.bmm(rows.view(-1, shape[-2], key), matrices.view(-1, key, value)).view(shape[:-1] + (value,))


@constant
def _bags(total: int, each: int, key: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The table's rows for every bag one after another, and where each bag starts."""
    rows = torch.arange(total // each, dtype=torch.int32, device="cpu").view(-1, 1, key)
    return rows.repeat(1, each, 1).view(-1), torch.arange(0, total, key, dtype=torch.int32, device="cpu")

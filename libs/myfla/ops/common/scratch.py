"""Buffers that are used again: fresh ones would cost a page fault for every 4 kB."""

from typing import Dict, Tuple

import torch


class Scratch:
    """Named buffers of one dtype and device, as large as the largest block needs.

    Args:
        like: tensor whose device is used.
        dtype: dtype of all buffers.
        batch: largest number of matrices that will be asked for.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, batch: int) -> None:
        self.device, self.dtype, self.batch = like.device, dtype, batch
        self.buffers: Dict[str, torch.Tensor] = {}

    def get(self, name: str, batch: int, *shape: int) -> torch.Tensor:
        """An uninitialised ``[batch, *shape]`` tensor; the same memory for the same name."""
        buffer = self.buffers.get(name)
        if buffer is None:
            buffer = torch.empty((self.batch,) + tuple(shape), dtype=self.dtype, device=self.device)
            self.buffers[name] = buffer
        return buffer[:batch]


def split_heads(matrices: torch.Tensor, heads: int) -> torch.Tensor:
    """``[M * heads, C, D]`` as ``[M, heads, C, D]``, a view."""
    shape: Tuple[int, ...] = (matrices.shape[0] // heads, heads) + tuple(matrices.shape[1:])
    return matrices.view(shape)

"""Buffers of one call, used again for each of its blocks."""

import math
from typing import Dict, Tuple

import torch


class Workspace:
    """Named buffers of one dtype and device, as large as the largest block needs. It lives as long as one call.

    Args:
        like: tensor whose device is used.
        dtype: dtype of all buffers.
        batch: largest number of matrices that will be asked for.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, batch: int) -> None:
        self.device, self.dtype, self.batch = like.device, dtype, batch
        self.buffers: Dict[str, torch.Tensor] = {}
        self.views: Dict[Tuple[str, int, Tuple[int, ...]], torch.Tensor] = {}

    def get(self, name: str, batch: int, *shape: int) -> torch.Tensor:
        """An uninitialised ``[batch, *shape]`` tensor; the same memory for the same name."""
        view = self.views.get((name, batch, shape))
        if view is None:
            size, buffer = math.prod(shape), self.buffers.get(name)
            if buffer is None or buffer.numel() < self.batch * size:
                buffer = self.buffers[name] = torch.empty(self.batch * size, dtype=self.dtype, device=self.device)
            view = self.views[name, batch, shape] = buffer[: batch * size].view((batch,) + shape)
        return view


def part(x: torch.Tensor, at: slice, axis: int = 0) -> torch.Tensor:
    """``x[at]``, or along another axis; x itself where that is all, which costs no call."""
    if at.start == 0 and at.stop >= x.shape[axis]:
        return x
    return x[at] if axis == 0 else x.narrow(axis, at.start, min(at.stop, x.shape[axis]) - at.start)


def split_heads(matrices: torch.Tensor, heads: int) -> torch.Tensor:
    """``[M * heads, C, D]`` as ``[M, heads, C, D]``, a view."""
    shape: Tuple[int, ...] = (matrices.shape[0] // heads, heads) + tuple(matrices.shape[1:])
    return matrices.view(shape)

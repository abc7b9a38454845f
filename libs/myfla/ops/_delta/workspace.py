"""Buffers of one call, used again for each of its blocks."""

import math
from typing import Dict, Optional, Tuple

import torch


class Workspace:
    """Named buffers on one device, as large as the largest block needs. It lives as long as one call.

    Args:
        like: tensor whose device is used.
        dtype: dtype of the buffers, where `get` is not told another.
        batch: largest number of matrices that will be asked for.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, batch: int) -> None:
        self.device, self.dtype, self.batch = like.device, dtype, batch
        self.buffers: Dict[Tuple[str, Optional[torch.dtype]], torch.Tensor] = {}

    def get(self, name: str, batch: int, *shape: int, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """An uninitialised ``[batch, *shape]`` tensor; the same memory for the same name."""
        size, buffer = math.prod(shape), self.buffers.get((name, dtype))
        if buffer is None or buffer.numel() < self.batch * size:
            buffer = torch.empty(self.batch * size, dtype=dtype or self.dtype, device=self.device)
            self.buffers[name, dtype] = buffer
        return buffer[: batch * size].view((batch, *shape))


class Buffers:
    """One block's tensors: what is kept for the backward in its place there, the rest in a `Workspace`.

    Args:
        workspace: for the rest.
        batch: number of the block's matrices.
        kept: by name, the block's part of what is kept.
        again: whether what is kept has been written before.
    """

    def __init__(self, workspace: Workspace, batch: int, kept: Dict[str, torch.Tensor], again: bool = False) -> None:
        self.workspace, self.batch, self.kept, self.again = workspace, batch, kept, again

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """``[M, *shape]``: kept, or a buffer."""
        found = self.kept.get(name)
        return self.workspace.get(name, self.batch, *shape) if found is None else found

    def known(self, name: str) -> bool:
        """Whether `get` gives what an earlier call has written."""
        return self.again and name in self.kept

    def temporary(self, name: str, *shape: int, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """``[M, *shape]``: a buffer."""
        return self.workspace.get(name, self.batch, *shape, dtype=dtype)


def part(x: torch.Tensor, at: slice, axis: int = 0) -> torch.Tensor:
    """``x[at]``, or along another axis; x itself where that is all, which costs no call."""
    if at.start == 0 and at.stop >= x.shape[axis]:
        return x
    return x[at] if axis == 0 else x.narrow(axis, at.start, min(at.stop, x.shape[axis]) - at.start)


def split_heads(matrices: torch.Tensor, heads: int) -> torch.Tensor:
    """``[M * heads, C, D]`` as ``[M, heads, C, D]``, a view."""
    shape: Tuple[int, ...] = (matrices.shape[0] // heads, heads, *tuple(matrices.shape[1:]))
    return matrices.view(shape)

"""Buffers that are used again: fresh ones would cost a page fault for every 4 kB."""

import math
import threading
from typing import Any, Dict, List, Sequence, Tuple

import torch

from myfla.utils.large import empty_large

LARGEST_KEPT = 4 * 1024 * 1024
"""Bytes; a larger buffer goes back where it came from after a call, a smaller one waits in its thread for the next."""

LARGEST_SHARED = 32 * 1024 * 1024
"""Bytes of one allocation for several tensors; more than that glibc always asks the system for."""

ALIGNED = 16
"""Every tensor in such an allocation begins at a multiple of as many elements."""

MOST_VIEWS = 128
"""Views of a thread's buffers that wait with them, for calls of the same shapes."""

_waiting = threading.local()


class Scratch:
    """Named buffers of one dtype and device, as large as the largest block needs.

    In a ``with`` block a CPU's buffers come from the thread's last such block and are kept for the next: one call's
    page faults would cost as much as a short sequence's arithmetic. No view of them may outlive the block.

    Args:
        like: tensor whose device is used.
        dtype: dtype of all buffers.
        batch: largest number of matrices that will be asked for.
    """

    def __init__(self, like: torch.Tensor, dtype: torch.dtype, batch: int) -> None:
        self.device, self.dtype, self.batch = like.device, dtype, batch
        self.buffers: Dict[str, torch.Tensor] = {}
        self.views: Dict[Tuple[Any, ...], torch.Tensor] = {}

    def __enter__(self) -> "Scratch":
        # Inference tensors cannot be written outside of inference mode.
        self.key = f"{self.dtype} {torch.is_inference_mode_enabled()}"
        if self.device.type == "cpu":
            self.buffers, self.views = vars(_waiting).pop(self.key, ({}, {}))
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cpu":
            for name in [name for name, x in self.buffers.items() if x.numel() * x.element_size() > LARGEST_KEPT]:
                self._drop(name)
            if len(self.views) > MOST_VIEWS:
                self.views = {}
            vars(_waiting)[self.key] = self.buffers, self.views
        self.buffers, self.views = {}, {}

    def get(self, name: str, batch: int, *shape: int) -> torch.Tensor:
        """An uninitialised ``[batch, *shape]`` tensor; the same memory for the same name."""
        view = self.views.get((name, batch, shape))
        if view is None:
            size, buffer = math.prod(shape), self.buffers.get(name)
            if buffer is None or buffer.numel() < self.batch * size:
                self._drop(name)
                buffer = empty_large(self.batch * size, dtype=self.dtype, device=self.device)
                self.buffers[name] = buffer
            view = self.views[name, batch, shape] = buffer[: batch * size].view((batch,) + shape)
        return view

    def _drop(self, name: str) -> None:
        """Forget a buffer and its views."""
        self.buffers.pop(name, None)
        self.views = {key: view for key, view in self.views.items() if key[0] != name}


def together(like: torch.Tensor, shapes: Sequence[Tuple[int, ...]]) -> List[torch.Tensor]:
    """Unwritten tensors of these shapes, in the dtype and on the device of ``like``, in few allocations.

    A large one costs a few microseconds (`myfla.utils.large`). Of ordinary memory, glibc gives back to the system what
    many middling tensors leave behind when they are freed at one time, and every page of the next call's is then a
    fault; after one tensor as large as all of them it keeps as much.
    """
    sizes = [-(-math.prod(shape) // ALIGNED) * ALIGNED for shape in shapes]
    out: List[torch.Tensor] = []
    while len(out) < len(shapes):
        start, stop = len(out), len(out) + 1
        while stop < len(shapes) and sum(sizes[start : stop + 1]) * like.element_size() <= LARGEST_SHARED:
            stop += 1
        memory = empty_large(sum(sizes[start:stop]), dtype=like.dtype, device=like.device)
        parts = memory.split(sizes[start:stop])
        out += [part(x, slice(0, math.prod(shape))).view(shape) for x, shape in zip(parts, shapes[start:stop])]
    return out


def part(x: torch.Tensor, at: slice, axis: int = 0) -> torch.Tensor:
    """``x[at]``, or along another axis; x itself where that is all, which costs no call."""
    if at.start == 0 and at.stop >= x.shape[axis]:
        return x
    return x[at] if axis == 0 else x.narrow(axis, at.start, min(at.stop, x.shape[axis]) - at.start)


def split_heads(matrices: torch.Tensor, heads: int) -> torch.Tensor:
    """``[M * heads, C, D]`` as ``[M, heads, C, D]``, a view."""
    shape: Tuple[int, ...] = (matrices.shape[0] // heads, heads) + tuple(matrices.shape[1:])
    return matrices.view(shape)

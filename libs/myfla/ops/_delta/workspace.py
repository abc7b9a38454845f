"""One tensor for all buffers of a block of chunks, cut into named matrices."""

from typing import Dict, Mapping, NamedTuple, Optional, Tuple

import torch

__all__ = ["PADDING", "BlockShapes", "Buffers", "Parts", "Shapes", "Workspace"]

Shape = Tuple[int, int]
Shapes = Dict[str, Shape]
"""For each name the rows and columns of its M matrices."""

PADDING = 5 * 16
"""Numbers between one part and the next, an odd number of cache lines of float32, so that parts that are used together
do not lie at the same position of a page."""


class BlockShapes(NamedTuple):
    """The tensors of one block.

    Attributes:
        residuals: what the forward always saves for its backward.
        recomputable: tensors that are quick to compute again, and so are saved for short inputs only.
        forward, backward: further buffers of either direction.
        aliases: buffers of the backward, each in the memory of the named tensor, which is no longer read then.
    """

    residuals: Shapes
    recomputable: Shapes
    forward: Shapes
    backward: Shapes
    aliases: Mapping[str, Tuple[str, Shape]] = {}


class Buffers(Dict[str, torch.Tensor]):
    """One block's tensors by name, ``[M, ...]``; only those that the forward has saved contain values.

    Attributes:
        inference: whether there is no backward.
        backward: whether this is the backward, and the tensors of `BlockShapes.residuals` have been written.
        has_recomputable: whether those of `BlockShapes.recomputable` have been written too.
    """

    inference = backward = has_recomputable = False


class Parts:
    """The positions of named parts in one tensor.

    Args:
        shapes: of each part's matrices.
        matrices: how many there are of each.
        start: where the first part begins.
        aliases: parts in the memory of others.

    Attributes:
        stop: where another part may begin.
    """

    def __init__(
        self, shapes: Shapes, matrices: int, start: int = 0,
        aliases: Optional[Mapping[str, Tuple[str, Shape]]] = None,
    ) -> None:
        sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
        aliases = aliases or {}
        for base, (rows, columns) in aliases.values():
            sizes[base] = max(sizes[base], rows * columns)
        starts: Dict[str, int] = {}
        for name, size in sizes.items():
            starts[name] = start
            start += -(-matrices * size // 16) * 16 + PADDING
        self.stop = start
        self.parts = [(name, starts[name], shape) for name, shape in shapes.items()]
        self.parts += [(name, starts[base], shape) for name, (base, shape) in aliases.items()]

    def views(self, memory: torch.Tensor, matrices: int, first: int = 0) -> Dict[str, torch.Tensor]:
        """For each name this many matrices from the first on, ``[matrices, ...]``."""
        zero = memory.storage_offset()
        return {
            name: memory.as_strided(
                (matrices, rows, columns), (rows * columns, columns, 1), zero + start + first * rows * columns
            )
            for name, start, (rows, columns) in self.parts
        }


class Workspace:
    """Buffers of one call, used again for each of its blocks.

    Args:
        like: tensor whose device is used.
        dtype: of the buffers.
        shapes: of the buffers.
        matrices: of the largest block.
        aliases: see `BlockShapes`.
    """

    def __init__(
        self, like: torch.Tensor, dtype: torch.dtype, shapes: Shapes, matrices: int,
        aliases: Optional[Mapping[str, Tuple[str, Shape]]] = None,
    ) -> None:
        self.parts = Parts(shapes, matrices, aliases=aliases)
        self.memory = like.new_empty(self.parts.stop, dtype=dtype)
        self.found: Dict[int, Dict[str, torch.Tensor]] = {}

    def views(self, matrices: int) -> Dict[str, torch.Tensor]:
        """The buffers of a block of this many matrices."""
        if matrices not in self.found:
            self.found[matrices] = self.parts.views(self.memory, matrices)
        return self.found[matrices]

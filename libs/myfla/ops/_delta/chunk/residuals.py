"""What the forward of the chunk form keeps for its backward."""

import math
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch

from myfla.ops._delta.families.base import Family, Plan, Sizes, Tensors
from myfla.ops._delta.layout import Block


class _Part(NamedTuple):
    tensor: int  # which of those that are kept
    start: int
    each: int  # matrices of each value head
    shape: Tuple[int, ...]  # of a matrix


class Residuals:
    """Which tensors there are, and where in them each named part lies: its matrices for the first value heads, for the
    next, and so on.

    Args:
        plan: of the call.
        heads, key, value: HV, K and V.

    Attributes:
        sizes: of the tensors.
        complete: whether the states before every chunk are kept.
    """

    def __init__(self, plan: Plan, heads: int, key: int, value: int) -> None:
        layout, chunk = plan.layout, plan.layout.chunk
        shapes = _shapes(plan.family, chunk, key, value, plan.keep_tokens)
        self.complete, self.sizes = plan.keep_states, [0]
        self.parts: Dict[str, _Part] = {}
        for name, shape in shapes.items():
            count = layout.openings if name == "states" and not self.complete else layout.total
            size = -(-heads * count * math.prod(shape) // 16) * 16  # every part is aligned
            if self.sizes[-1] and self.sizes[-1] + size > plan.largest_kept:
                self.sizes.append(0)
            self.parts[name] = _Part(len(self.sizes) - 1, self.sizes[-1], count, shape)
            self.sizes[-1] += size

    @classmethod
    def of(cls, plan: Plan, x: Tensors) -> "Residuals":
        """Those of a call with the tensors x."""
        return cls(plan, x[2].shape[2], x[1].shape[3], x[2].shape[3])

    @staticmethod
    def each(family: Family, chunk: int, key: int, value: int) -> List[Tuple[int, ...]]:
        """Shapes of what a chunk of one head keeps where the states before all are kept, and not what is quickly found
        again."""
        return list(_shapes(family, chunk, key, value, False).values())

    def empty(self, like: torch.Tensor, dtype: torch.dtype) -> List[torch.Tensor]:
        """The tensors, unwritten."""
        return [like.new_empty(size, dtype=dtype) for size in self.sizes]

    def of_heads(self, tensors: Sequence[torch.Tensor], first: int, heads: int) -> Dict[str, torch.Tensor]:
        """By name what belongs to some value heads, ``[matrices, ...]``: views."""
        found = {}
        for name, (tensor, start, count, shape) in self.parts.items():
            each = count * math.prod(shape)
            found[name] = tensors[tensor].narrow(0, start + first * each, heads * each).view(heads * count, *shape)
        return found

    def of_block(self, of_heads: Dict[str, torch.Tensor], block: Block, heads: int) -> Dict[str, torch.Tensor]:
        """By name what belongs to a block; of the states those before every chunk, or those that it begins with."""
        span = block.span(heads)
        if self.complete and span.start == 0 and span.stop == of_heads["states"].shape[0]:
            return of_heads
        found = {name: x[span] for name, x in of_heads.items()}
        if not self.complete:
            found["states"] = of_heads["states"][block.opening(heads)]
        return found


def _shapes(family: Family, chunk: int, key: int, value: int, tokens: bool) -> Sizes:
    always, short = family.residuals(chunk, key, value)
    shapes: Sizes = {"states": (key, value), "v_new": (chunk, value), "A_inv_T": (chunk, chunk), **always}
    return {**shapes, **short} if tokens else shapes

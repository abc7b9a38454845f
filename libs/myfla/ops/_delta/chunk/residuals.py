"""What the forward of the chunk form keeps for its backward."""

import math
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch

from myfla.ops._delta.families.base import Family, Plan, Sizes, Tensors
from myfla.ops._delta.layout import Block


class _Part(NamedTuple):
    tensor: int  # which of those that are kept
    start: int
    matrices: int
    shape: Tuple[int, ...]  # of a matrix


class Residuals:
    """Which tensors there are, and where in them each named part of some value heads lies.

    Args:
        plan: of the call.
        groups: how many value heads are worked on together, one group after another.
        key, value: K and V.

    Attributes:
        sizes: of the tensors.
        complete: whether the states before every chunk are kept.
    """

    def __init__(self, plan: Plan, groups: Sequence[int], key: int, value: int) -> None:
        layout, chunk = plan.layout, plan.layout.chunk
        shapes = _shapes(plan.family, chunk, key, value, plan.keep_tokens)
        self.complete, self.sizes = plan.keep_states, [0]
        self.parts: Dict[int, Dict[str, _Part]] = {}  # by the first head of a group
        first = 0
        for heads in groups:
            parts = self.parts[first] = {}
            for name, shape in shapes.items():
                count = layout.openings if name == "states" and not self.complete else layout.total
                size = -(-heads * count * math.prod(shape) // 16) * 16  # every part is aligned
                if self.sizes[-1] and self.sizes[-1] + size > plan.largest_kept:
                    self.sizes.append(0)
                parts[name] = _Part(len(self.sizes) - 1, self.sizes[-1], heads * count, shape)
                self.sizes[-1] += size
            first += heads

    @classmethod
    def of(cls, plan: Plan, x: Tensors) -> "Residuals":
        """Those of a call with the tensors x."""
        groups = [many.stop - many.start for _, many in head_groups(plan, x[1].shape[2], x[2].shape[2])]
        return cls(plan, groups, x[1].shape[3], x[2].shape[3])

    @staticmethod
    def each(family: Family, chunk: int, key: int, value: int) -> List[Tuple[int, ...]]:
        """Shapes of what a chunk of one head keeps where the states before all are kept, and not what is quickly found
        again."""
        return list(_shapes(family, chunk, key, value, False).values())

    def empty(self, like: torch.Tensor, dtype: torch.dtype) -> List[torch.Tensor]:
        """The tensors, unwritten."""
        return [like.new_empty(size, dtype=dtype) for size in self.sizes]

    def of_heads(self, tensors: Sequence[torch.Tensor], first: int) -> Dict[str, torch.Tensor]:
        """By name what belongs to the group that begins with a value head, ``[matrices, ...]``: views."""
        return {
            name: tensors[tensor].narrow(0, start, matrices * math.prod(shape)).view(matrices, *shape)
            for name, (tensor, start, matrices, shape) in self.parts[first].items()
        }

    def of_block(self, of_heads: Dict[str, torch.Tensor], block: Block, heads: int) -> Dict[str, torch.Tensor]:
        """By name what belongs to a block; of the states those before every chunk, or those that it begins with."""
        span = block.span(heads)
        if self.complete and span.start == 0 and span.stop == of_heads["states"].shape[0]:
            return of_heads
        found = {name: x[span] for name, x in of_heads.items()}
        if not self.complete:
            found["states"] = of_heads["states"][block.opening(heads)]
        return found


def head_groups(plan: Plan, heads: int, value_heads: int) -> List[Tuple[slice, slice]]:
    """Which heads of q and k, and which of v, are worked on together."""
    step, group = plan.layout.block_heads or heads, value_heads // heads
    firsts = range(0, heads, step)
    return [(slice(a, a + step), slice(a * group, min(a + step, heads) * group)) for a in firsts]


def _shapes(family: Family, chunk: int, key: int, value: int, tokens: bool) -> Sizes:
    always, short = family.residuals(chunk, key, value)
    solved: Sizes = {"A_inv_T": (chunk, chunk)} if family.corrects else {}
    shapes: Sizes = {"states": (key, value), "v_new": (chunk, value), **solved, **always}
    return {**shapes, **short} if tokens else shapes

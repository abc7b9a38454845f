"""What the forward of the chunk form keeps for its backward: one tensor, and where in it each part lies."""

import math
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch

from myfla.ops._delta.families.base import Family, Plan, Sizes, Tensors
from myfla.ops._delta.layout import Block

__all__ = ["APART", "Residuals", "head_groups"]

APART = 5 * 16
"""Numbers between one part and the next, an odd number of cache lines of float32: what is read and written at one time
shall not lie at the same place of a page."""


class _Part(NamedTuple):
    start: int
    matrices: int
    shape: Tuple[int, ...]  # of a matrix


class Residuals:
    """Where each named part of some value heads lies.

    Args:
        plan: of the call.
        x: its tensors.
        kept: the tensor; None where there is no backward, and so nothing to keep.

    Attributes:
        size: numbers in the tensor.
    """

    def __init__(self, plan: Plan, x: Tensors, kept: Optional[torch.Tensor]) -> None:
        layout, self.plan, self.kept, self.size = plan.layout, plan, kept, 0
        shapes = _shapes(plan.family, layout.chunk, x[1].shape[3], x[2].shape[3], plan.keep_tokens)
        self.parts: Dict[int, Dict[str, _Part]] = {}  # by the first head of a group
        for _, many in head_groups(plan, x[1].shape[2], x[2].shape[2]):
            parts = self.parts[many.start] = {}
            for name, shape in shapes.items():
                chunks = layout.openings if name == "states" and not plan.keep_states else layout.total
                parts[name] = _Part(self.size, (many.stop - many.start) * chunks, shape)
                self.size += -(-parts[name].matrices * math.prod(shape) // 16) * 16 + APART

    @staticmethod
    def each(family: Family, chunk: int, key: int, value: int) -> List[Tuple[int, ...]]:
        """Shapes of what a chunk of one head keeps where the states before all are kept, and not what is quickly found
        again."""
        return list(_shapes(family, chunk, key, value, False).values())

    @classmethod
    def empty(cls, plan: Plan, x: Tensors) -> torch.Tensor:
        """The tensor, unwritten."""
        return x[2].new_empty(cls(plan, x, None).size, dtype=plan.dtype)

    def of_heads(self, first: int) -> Dict[str, torch.Tensor]:
        """By name what belongs to the group that begins with a value head, ``[matrices, ...]``: views."""
        if self.kept is None:
            return {}
        return {
            name: self.kept.narrow(0, start, matrices * math.prod(shape)).view(matrices, *shape)
            for name, (start, matrices, shape) in self.parts[first].items()
        }

    def of_block(self, of_heads: Dict[str, torch.Tensor], block: Block, heads: int) -> Dict[str, torch.Tensor]:
        """By name what belongs to a block; of the states those before every chunk, or those that it begins with."""
        span, complete = block.span(heads), self.plan.keep_states
        if not of_heads:
            return of_heads
        if complete and span.start == 0 and span.stop == of_heads["states"].shape[0]:
            return of_heads
        found = {name: x[span] for name, x in of_heads.items()}
        if not complete:
            found["states"] = of_heads["states"][block.opening(heads)]
        return found


def head_groups(plan: Plan, heads: int, value_heads: int) -> List[Tuple[slice, slice]]:
    """Which heads of q and k, and which of v, are worked on together."""
    step, group = plan.layout.block_heads or heads, value_heads // heads
    firsts = range(0, heads, step)
    return [(slice(a, min(a + step, heads)), slice(a * group, min(a + step, heads) * group)) for a in firsts]


def _shapes(family: Family, chunk: int, key: int, value: int, tokens: bool) -> Sizes:
    always, short = family.residuals(chunk, key, value)
    solved: Sizes = {"A_inv_T": (chunk, chunk)} if family.corrects else {}
    shapes: Sizes = {"states": (key, value), "v_new": (chunk, value), **solved, **always}
    return {**shapes, **short} if tokens else shapes

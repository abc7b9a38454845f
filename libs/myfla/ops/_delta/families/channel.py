"""What the families with a decay for every key channel share: how a block is weighed, and again in the backward."""

from typing import Callable, Tuple

import torch

from myfla.ops._delta.chunk.channels import Channels, Tokens, exp_decays, weigh_tokens
from myfla.ops._delta.families.base import Family, Sizes
from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import Buffers

Load = Callable[[torch.Tensor, torch.Tensor], None]
"""Fills ``left [M, R C, K]`` and ``right [M, S C, K]`` with tokens that are not weighed."""


class ChannelFamily(Family):
    """Base of these.

    Attributes:
        rows, columns: R and S, how many kinds of tokens read and write.
        before: whether the second kind of rows reads before its own decay.
    """

    largest_chunk = 32  # work within a chunk, and the sum of its decays, grow faster than elsewhere
    fills_heads = True
    rows = 2
    columns = 1
    before = False

    def residuals(self, chunk: int, key: int, value: int) -> Tuple[Sizes, Sizes]:
        left, right = (self.rows * chunk, key), (self.columns * chunk, key)
        short: Sizes = {"exp_g": (chunk + 1, key), "left": left, "right": right, "out_keys": right,
                 "A": (self.rows * chunk, self.columns * chunk)}  # fmt: skip
        return {"strong": (1,)}, short

    def weigh(self, block: Block, gk: torch.Tensor, load: Load, buffers: Buffers) -> Channels:
        """The block's tokens, weighed; those that are kept are taken as they are."""
        chunk, key = block.chunk, gk.shape[3]
        flags = buffers.get("strong", 1)
        names = {"exp_g": chunk + 1, "left": self.rows * chunk, "right": self.columns * chunk,
                 "out_keys": self.columns * chunk}  # fmt: skip
        if buffers.known("left") and not bool(flags.any()):
            exp_g, left, right, out = (buffers.get(name, rows, key) for name, rows in names.items())
            A = buffers.get("A", self.rows * chunk, self.columns * chunk)
            return Channels(exp_g, left, right, out, A, exp_g[:, chunk:].transpose(1, 2).contiguous(), None)
        place = buffers.temporary if buffers.again else buffers.get  # what is kept stays as it is
        exp_g, left, right, out = (place(name, rows, key) for name, rows in names.items())
        A = place("A", self.rows * chunk, self.columns * chunk)
        load(left, right)
        strong = exp_decays(block, gk, buffers, exp_g)
        if not buffers.again:
            flags.zero_()
            if strong is not None:
                flags[strong] = 1
        return weigh_tokens(block, Tokens(left, right, gk, self.before), exp_g, strong, out, A)

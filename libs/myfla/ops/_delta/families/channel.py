"""What the families with a decay for every key channel share: how a block is weighed, and again in the backward."""

from typing import Callable

import torch

from myfla.ops._delta.chunk.channels import Channels, Tokens, exp_decays, weigh_tokens
from myfla.ops._delta.families.base import Family
from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import BlockShapes, Buffers

Load = Callable[[torch.Tensor, torch.Tensor], None]
"""Fills ``left [M, R C, K]`` and ``right [M, S C, K]`` with tokens that are not weighed."""


SHORT = ("exp_g", "left", "right", "out_keys", "A")
"""What is kept of short inputs only."""


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

    def shapes(self, chunk: int, key: int, value: int) -> BlockShapes:
        left, right = (self.rows * chunk, key), (self.columns * chunk, key)
        return BlockShapes(
            kept={"strong": (1, 1)},
            short={"exp_g": (chunk + 1, key), "left": left, "right": right, "out_keys": right,
                   "A": (self.rows * chunk, self.columns * chunk)},
            forward={"v_in": (chunk, value)},
            backward={"dA": (self.rows * chunk, self.columns * chunk), "dright": right,
                      "flow": (2 * chunk, key), "dgk": (chunk, key)},
        )  # fmt: skip

    def weigh(self, block: Block, gk: torch.Tensor, load: Load, buffers: Buffers) -> Channels:
        """The block's tokens, weighed; those that are kept are taken as they are."""
        chunk, strong = block.chunk, buffers["strong"]
        if buffers.known and not bool(strong.any()):
            exp_g, left, right, out, A = (buffers[name] for name in SHORT)
            return Channels(exp_g, left, right, out, A, exp_g[:, chunk:].transpose(1, 2).contiguous(), None)
        # What is kept stays as it is.
        exp_g, left, right, out, A = (
            torch.empty_like(buffers[name]) if buffers.known else buffers[name] for name in SHORT
        )
        load(left, right)
        beyond = exp_decays(block, gk, exp_g)
        if not buffers.backward:
            strong.zero_()
            if beyond is not None:
                strong[beyond] = 1
        return weigh_tokens(block, Tokens(left, right, gk, self.before), exp_g, beyond, out, A)

"""Tokens of a block in rows of matrices, and back."""

import torch

from myfla.ops._delta.layout import Block
from myfla.ops._delta.workspace import split_heads


def halves(tall: torch.Tensor, chunk: int) -> torch.Tensor:
    """``[M, R C, D]`` as ``[M, R, C, D]``."""
    return tall.view(tall.shape[0], -1, chunk, tall.shape[2])


def load_rows(block: Block, x: torch.Tensor, heads: int, out: torch.Tensor, pad: bool = False) -> torch.Tensor:
    """Fill ``out [M, C, D]`` from ``x [B, T, H, D]``, its heads repeated to ``heads``."""
    block.load(x, split_heads(out, heads), pad)
    return out


def store_rows(block: Block, found: torch.Tensor, heads: int, out: torch.Tensor) -> None:
    """Write ``found [M, C, D]`` to ``out [B, T, H, D]``; heads that share one of ``out``'s are summed."""
    block.store(split_heads(found, heads), out)

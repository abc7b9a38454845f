"""Backward passes computed a few tokens at a time, so that values that are read several times stay in a core's
cache."""

from typing import Iterator, Tuple

import torch

CPU_BLOCK = 256 * 1024
"""Elements of one operand per thread (1 MB of float32)."""


def blocks(batch: int, tokens: int, channels: int, device: torch.device) -> Iterator[Tuple[slice, int, int]]:
    """Parts of ``[batch, tokens, channels]``, the last tokens first; one part on devices other than the CPU.

    Yields:
        A slice of rows, and the first and the last but one token. The blocks of some rows follow each other, from the
        end of the sequences to their beginning.

    Example:
        >>> [(rows.start, first, end) for rows, first, end in blocks(2, 3, 4, torch.device("cpu"))]
        [(0, 0, 3)]
    """
    budget = CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else batch * tokens * channels
    step = max(1, min(tokens, budget // max(channels, 1)))
    rows = max(1, min(batch, budget // max(tokens * channels, 1))) if step == tokens else 1
    for row in range(0, batch, rows):
        for end in range(tokens, 0, -step):  # no block is longer than the first one of its rows
            yield slice(row, min(row + rows, batch)), max(end - step, 0), end

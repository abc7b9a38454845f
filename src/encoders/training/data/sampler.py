"""Chooses the sequences of each batch, and the share of each process."""

import math
from typing import Iterator, List, Optional, Sequence

import torch
from torch.utils.data import RandomSampler, Sampler

__all__ = ["BatchSampler", "filler", "plan"]


class BatchSampler(Sampler):
    """Batches of indices. Every process draws the same batches and takes every ``world``-th sequence of each.

    A batch therefore has the same sequences on one process and on several, and no sequence is used twice. If a batch
    has fewer sequences than there are processes, the other processes get its first sequence without its target
    (`filler`).

    Args:
        lengths: steps of every sequence.
        batch_size: sequences in a batch, all processes together.
        batch_tokens: most tokens in a batch instead: padding included, or with ``packed`` the real ones; a longer
            sequence is a separate batch. Sequences of similar length come together where the order is drawn.
        packed: see ``batch_tokens``.
        generator: draws the order; None keeps the sequences in theirs.
        rank, world: number of this process, and number of processes.
        behind: batches that the first pass draws and leaves out, because an earlier start has trained on them.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, batch_tokens: Optional[int] = None,
                 packed: bool = False, generator: Optional[torch.Generator] = None, rank: int = 0,
                 world: int = 1, behind: int = 0) -> None:
        self.generator, self.rank, self.world, self.behind = generator, rank, world, behind
        self._count = len(lengths)
        self._classes: Optional[List[int]] = None
        if batch_tokens is None:
            self._sizes = [min(batch_size, self._count - i) for i in range(0, self._count, batch_size)]
        else:
            self._classes = [length_class(n) for n in lengths]
            costs = self._classes if generator is None else sorted(self._classes)
            self._sizes = plan(costs, batch_tokens, packed)

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[List[int]]:
        shuffled = self.generator is not None
        order = list(RandomSampler(range(self._count), generator=self.generator) if shuffled else range(self._count))
        if shuffled and self._classes is not None:
            order.sort(key=self._classes.__getitem__)  # stable: similar lengths stay in their random order
        batches, start = [], 0
        for size in self._sizes:
            batches.append(order[start : start + size])
            start += size
        if shuffled and self._classes is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=self.generator).tolist()]
        behind, self.behind = self.behind, 0
        for batch in batches[behind:]:
            yield batch[self.rank :: self.world] or [filler(batch[0])]


def filler(index: int) -> int:
    """The sequence at ``index`` without its target; its own inverse."""
    return -1 - index


def length_class(length: int) -> int:
    """Round up to one of eight lengths for each octave, so that the number of batches does not depend on the order."""
    return math.ceil(2 ** (math.ceil(8 * math.log2(max(length, 1))) / 8) - 1e-9)


def plan(costs: Sequence[int], budget: int, packed: bool) -> List[int]:
    """Sizes of batches that keep within a number of tokens.

    Args:
        costs: tokens of each sequence.
        budget: of a batch.
        packed: a batch costs the sum of its sequences; else the longest of them times their number.

    Example:
        >>> plan([2, 2, 3, 3, 4], 8, packed=False), plan([2, 2, 3, 3, 4], 8, packed=True)
        ([2, 2, 1], [3, 2])
    """
    sizes: List[int] = []
    size = total = longest = 0
    for cost in costs:
        grown = total + cost if packed else max(longest, cost) * (size + 1)
        if size and grown > budget:
            sizes.append(size)
            size = longest = 0
            grown = cost
        size, total, longest = size + 1, grown, max(longest, cost)
    return [*sizes, size] if size else sizes

"""Tasks made up by rule: what state a layer can keep, and what it can look up. Sequences of token ids, a class a step.

Sources: parity and counting, Merrill et al. (arXiv 2404.08819) and Grazzi et al. (arXiv 2411.12537); the word problem
of S3, Merrill et al.; associative recall with many queries, Arora et al. (Zoology, arXiv 2312.04927); the flip-flop
memory, Liu et al. (arXiv 2306.00946).
"""

from itertools import permutations
from typing import Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Generator, Tensor

from cfg.data import SyntheticDataConfig
from encoders.training.data.sequences import IGNORE, SequenceData, SequenceSet

__all__ = ["load"]

Drawn = Tuple[Tensor, Tensor]
ELEMENTS = list(permutations(range(3)))


class Task(NamedTuple):
    """How one task is made.

    Attributes:
        draw: ``draw(config, count, length, generator, train)``: tokens and targets ``[count, length]`` int64.
        tokens: how many token ids there are.
        classes: names of the targets.
    """

    draw: Callable[..., Drawn]
    tokens: Callable[[SyntheticDataConfig], int]
    classes: Callable[[SyntheticDataConfig], List[str]]


def load(config: SyntheticDataConfig) -> SequenceData:
    """Draw the training set and one test set for each length."""
    task = TASKS[config.task]
    generator = torch.Generator().manual_seed(config.data_seed)

    def draw(count: int, length: int, train: bool) -> SequenceSet:
        x, targets = task.draw(config, count, length, generator, train)
        return SequenceSet(list(x), list(targets))

    train = draw(config.train_sequences, config.train_length, True)
    first, *others = [draw(config.test_sequences, length, False) for length in config.test_lengths]
    longer = {str(length): data for length, data in zip(config.test_lengths[1:], others)}
    return SequenceData(train, first, task.classes(config), vocab_size=task.tokens(config), per_step=True,
                        longer=longer)


def _counting(config: SyntheticDataConfig, count: int, length: int, generator: Generator, train: bool) -> Drawn:
    x = torch.randint(2, (count, length), generator=generator)
    modulus = 2 if config.task == "parity" else config.modulus
    return x, x.cumsum(1) % modulus


def _s3(config: SyntheticDataConfig, count: int, length: int, generator: Generator, train: bool) -> Drawn:
    x = torch.randint(len(ELEMENTS), (count, length), generator=generator)
    table = _products()
    state, targets = torch.zeros(count, dtype=torch.int64), torch.empty_like(x)
    for t in range(length):
        state = table[x[:, t], state]
        targets[:, t] = state
    return x, targets


def _products() -> Tensor:
    """``[6, 6]``: the number of ``a`` after ``b``; number 0 is the identity."""
    number = {element: i for i, element in enumerate(ELEMENTS)}
    return torch.tensor([[number[tuple(a[b[i]] for i in range(3))] for b in ELEMENTS] for a in ELEMENTS])


def _recall(config: SyntheticDataConfig, count: int, length: int, generator: Generator, train: bool) -> Drawn:
    pairs, half = config.pairs, config.symbols // 2
    order = torch.rand(count, half, generator=generator).argsort(1)  # of all keys: those of the pairs, then the rest
    keys = order[:, :pairs]
    values = half + torch.randint(half, (count, pairs), generator=generator)
    x = torch.empty(count, length, dtype=torch.int64)
    x[:, : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2] = keys, values
    rest = length - 2 * pairs
    noise = torch.cat([order[:, pairs:], half + torch.arange(half).expand(count, half)], 1)
    x[:, 2 * pairs :] = noise.gather(1, torch.randint(noise.shape[1], (count, rest), generator=generator))
    where = 2 * pairs + torch.rand(count, rest, generator=generator).argsort(1)[:, :pairs]
    x.scatter_(1, where, keys)
    return x, torch.full_like(x, IGNORE).scatter_(1, where, values)


def _memory(config: SyntheticDataConfig, count: int, length: int, generator: Generator, train: bool) -> Drawn:
    """Tokens: ``0 .. symbols - 1`` set the memory, as many more are noise, the last one reads it."""
    symbols, read = config.symbols, 2 * config.symbols
    x = symbols + torch.randint(symbols, (count, length), generator=generator)
    first = torch.randint(symbols, (count,), generator=generator)
    x[:, 0] = first
    if train:
        kind = torch.rand(count, length, generator=generator)
        kind[:, 0] = 0.5
        sets = torch.randint(symbols, (count, length), generator=generator)
        # Each sequence at a rate of its own: short waits teach what to keep, long ones how long.
        rate = length ** -torch.rand(count, 1, generator=generator)
        x = torch.where(kind < 0.5 * rate, sets, x)
        x = torch.where(kind > 0.9, torch.full_like(x, read), x)
    x[:, -1] = read
    steps = torch.arange(length).expand_as(x)
    last = torch.where(x < symbols, steps, torch.zeros_like(steps)).cummax(1).values
    held = x.gather(1, last)
    return x, torch.where(x == read, held, torch.full_like(x, IGNORE))


def _numbers(count: int) -> List[str]:
    return [str(i) for i in range(count)]


TASKS: Dict[str, Task] = {
    "parity": Task(_counting, lambda c: 2, lambda c: ["even", "odd"]),
    "counting": Task(_counting, lambda c: 2, lambda c: _numbers(c.modulus)),
    "s3": Task(_s3, lambda c: 6, lambda c: ["".join("abc"[i] for i in element) for element in ELEMENTS]),
    "recall": Task(_recall, lambda c: c.symbols // 2 * 2, lambda c: _numbers(c.symbols // 2 * 2)),
    "memory": Task(_memory, lambda c: 2 * c.symbols + 1, lambda c: _numbers(c.symbols)),
}

"""How large chunks and blocks are. These numbers change speed and rounding, never meaning."""

import torch

CPU_BLOCK = 128 * 1024
"""Elements of one buffer per thread (512 kB of float32): a handful of such buffers stay in a core's cache."""

CPU_STATES = 128 * 1024
"""Elements of the states carried at one time per thread (512 kB of float32): half of a core's second cache."""

GPU_BLOCK = 64 * 1024 * 1024
"""On a GPU large products matter, not caches."""

STEP_BLOCK = 1 << 20
"""Elements of large states that one round of a recurrent step's operations works on, on a CPU: they stay in cache."""

STEP_WHOLE = 4 * STEP_BLOCK
"""Elements of states up to which there is one round: the last cache holds them, and calls cost more."""

KEPT = 15 << 19
"""Elements of all that is kept for the backward (30 MB of float32) up to which there is more of it: a tensor of 32 MB
or more is new memory at every call to the C library, and that costs as much as to find again what it would hold."""


def chunk_tokens(tokens: int, key: int, value: int, device: torch.device) -> int:
    """Tokens in a chunk, between 16 and 64, and not much more than there are.

    Within a chunk the work grows with C, and small products run at a lower rate; on CPUs these were the fastest.

    Args:
        tokens: length of a typical sequence.
        key, value: head sizes.
        device: where it runs.
    """
    if tokens <= 16:
        return max(tokens, 1)
    if device.type != "cpu":
        return 64
    size = max(key, value)
    wanted = 16 if size <= 32 else 32 if size <= 128 else 64
    while wanted > 16 and wanted >= 2 * tokens:
        wanted //= 2
    return wanted


def block_chunks(elements: int, device: torch.device) -> int:
    """How many chunks are worked on together.

    Args:
        elements: elements of one chunk of all heads in the largest buffer.
        device: where it runs.
    """
    budget = CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK
    return max(1, budget // max(elements, 1))


def states_together(elements: int, device: torch.device) -> int:
    """How many states are carried at a time; sequences and heads are independent.

    Args:
        elements: elements of one state.
        device: where it runs.
    """
    budget = CPU_STATES * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK
    return max(1, budget // max(elements, 1))


def keeps_more(elements: int, device: torch.device) -> bool:
    """Whether training keeps what could be found again: the states before every chunk, not only before every block.

    Args:
        elements: elements of all that is kept then.
        device: where it runs; on a GPU a block is almost everything as it is.
    """
    return device.type == "cpu" and elements <= KEPT

"""The length of a training in passes over the data."""

from typing import Optional, Tuple

from cfg.trainer import TrainerConfig

__all__ = ["passes"]


def passes(config: TrainerConfig, batches: int) -> Tuple[int, Optional[int]]:
    """The number of passes, and the largest number of batches in each; None for all.

    Args:
        config: with ``max_steps``, or ``max_epochs``.
        batches: of one pass over all data.

    Example:
        >>> passes(TrainerConfig(max_steps=10), batches=4), passes(TrainerConfig(max_epochs=3), batches=4)
        ((3, 4), (3, None))
    """
    if config.max_steps is None:
        return config.max_epochs or 1, config.limit_batches
    each = min(batches, config.limit_batches or batches)
    wanted = config.max_steps * config.accumulate_grad_batches
    count = -(-wanted // each)
    return count, -(-wanted // count)

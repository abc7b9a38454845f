"""Packed sequences one by one, for forms that know batches only."""

from typing import Callable, List, Optional, Sequence, Tuple

import torch

__all__ = ["each_sequence"]

Run = Callable[..., Tuple[torch.Tensor, torch.Tensor]]


def each_sequence(
    run: Run, tensors: Sequence[torch.Tensor], state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor]
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Call ``run`` on a batch, or on each packed sequence as a batch of one.

    Args:
        run: ``run(*tensors, state) -> (o [B, T, ...], final [B, ...])``.
        tensors: ``[B, T, ...]``, packed ``[1, total, ...]``.
        state: ``[N, ...]`` or None.
        cu_seqlens: ``[N + 1]`` or None.

    Returns:
        o ``[B, T, ...]`` and final ``[N, ...]``.

    Example:
        >>> total = lambda x, state: (x.cumsum(1), x.sum(1))
        >>> each_sequence(total, [torch.tensor([[1, 2, 3]])], None, torch.tensor([0, 1, 3]))[1].tolist()
        [1, 5]
    """
    if cu_seqlens is None:
        return run(*tensors, state)
    bounds = cu_seqlens.tolist()
    outputs: List[torch.Tensor] = []
    finals: List[torch.Tensor] = []
    for i, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        parts = [x[:, start:end] for x in tensors]
        o, final = run(*parts, None if state is None else state[i : i + 1])
        outputs.append(o)
        finals.append(final)
    if not outputs:  # no sequences at all: what an empty batch gives, without its row
        o, final = run(*tensors, None)
        return o, final[:0]
    return torch.cat(outputs, dim=1), torch.cat(finals)

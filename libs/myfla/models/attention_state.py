"""Keys and values that a cache keeps: in each row the real tokens stand at the end, in order, and pads before them."""

from typing import List, Optional, Sequence, Tuple

import torch

__all__ = ["append_tokens", "newest_tokens", "pad_front", "update_attention_cache"]


def append_tokens(
    cached: Optional[Sequence[torch.Tensor]], new: Sequence[torch.Tensor], added: Optional[torch.Tensor] = None
) -> Tuple[torch.Tensor, ...]:
    """Put new tokens behind those of a row, so that its real tokens stay together at the end.

    Args:
        cached: tensors ``[N, S, ...]``, or None for S = 0.
        new: as many tensors ``[N, C, ...]``.
        added: ``[N]``: how many of the last new positions of a row are real; None for all.

    Returns:
        Tensors ``[N, S + C, ...]``.

    Example:
        >>> old, new = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [0, 7]])
        >>> append_tokens([old], [new], torch.tensor([2, 1]))[0].tolist()
        [[1, 2, 5, 6], [3, 3, 4, 7]]
    """
    if cached is None:
        return tuple(new)
    joined = [torch.cat([old, extra], dim=1) for old, extra in zip(cached, new)]
    if added is None:
        return tuple(joined)
    rows, size = joined[0].shape[:2]
    place = torch.arange(size, device=joined[0].device)
    added = added.to(place.device)[:, None]
    # Tokens before the new pads move up in their place.
    source = torch.where(place >= size - added, place, (place - (new[0].shape[1] - added)).clamp(min=0))
    row = torch.arange(rows, device=place.device)[:, None]
    return tuple(tensor[row, source] for tensor in joined)


def newest_tokens(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """The last positions of ``[N, S, ...]``, in separate memory.

    Example:
        >>> newest_tokens(torch.tensor([[1, 2, 3]]), 2).tolist()
        [[2, 3]]
    """
    return tensor[:, tensor.shape[1] - count :].contiguous() if tensor.shape[1] > count else tensor


def update_attention_cache(
    cached_state: Sequence[torch.Tensor], new_state: Sequence[torch.Tensor], window_size: Optional[int]
) -> List[torch.Tensor]:
    """Keys and values of a cache with those of new tokens behind them; no tensor that is given is written.

    Args:
        cached_state: tensors ``[N, S, ...]``.
        new_state: as many tensors ``[N, C, ...]``.
        window_size: the largest number of positions that are kept, the last ones; None for all.

    Returns:
        Tensors ``[N, min(S + C, window_size), ...]``.

    Example:
        >>> old, new = torch.tensor([[1, 2]]), torch.tensor([[3]])
        >>> update_attention_cache([old], [new], 2)[0].tolist()
        [[2, 3]]
    """
    joined = append_tokens(cached_state, new_state)
    return [x if window_size is None else newest_tokens(x, window_size) for x in joined]


def pad_front(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Tensors ``[N, S, ...]`` of several lengths S at the longest of them, with zeros before the tokens.

    Example:
        >>> [x.tolist() for x in pad_front([torch.ones(1, 1), torch.ones(1, 2)])]
        [[[0.0, 1.0]], [[1.0, 1.0]]]
    """
    longest = max(tensor.shape[1] for tensor in tensors)
    return [torch.cat([t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:]), t], 1) for t in tensors]

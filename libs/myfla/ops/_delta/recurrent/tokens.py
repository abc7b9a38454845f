"""The order of a batch for the recurrent form: the rows of each token follow those of the token before.

A recurrent form that updates its state by operations of one shape for every token gives the same bits however a
sequence is split into calls. Many tokens may be prepared at once where rounding does not depend on the length of a
tensor; in the remainder of a vectorised loop it may.
"""

from typing import Any, Iterator, List, Optional, Tuple

import torch

from myfla.ops._delta.layout import longest_first


class TokenLayout:
    """Steps of a dense batch ``[B, T, ...]`` or of sequences packed as ``[1, total, ...]``.

    Packed sequences are ordered longest first, so that step t updates the first ``active[t]`` states.

    Args:
        batch, tokens: B and T, or 1 and the packed total.
        cu_seqlens: ``[N + 1]`` offsets, already checked; None for a dense batch.
        device: where index tensors live.

    Attributes:
        rows: number of sequences, N.
        active: number of sequences that have a t-th token, for each t.
        order: ``[N]`` int64 sequences longest first, or None if they are given in this order.
    """

    def __init__(self, batch: int, tokens: int, cu_seqlens: Optional[torch.Tensor], device: torch.device) -> None:
        self.order: Optional[torch.Tensor] = None
        self.index: Optional[torch.Tensor] = None
        if cu_seqlens is None:
            self.rows, self.active = batch, [batch] * tokens
            return
        order, first, lengths = longest_first(cu_seqlens)
        self.rows = lengths.numel()
        steps = int(lengths[0]) if self.rows else 0
        alive = lengths[None, :] > torch.arange(steps)[:, None]
        index = first + torch.arange(steps)[:, None]
        self.active = alive.sum(1).tolist()
        self.index = index[alive].to(device)
        if not torch.equal(order, torch.arange(self.rows)):
            self.order = order.to(device)

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, ...]`` (packed: ``[1, total, ...]``) as ``[B T, ...]``, token after token."""
        if self.index is not None:
            return x[0].index_select(0, self.index)
        return x.squeeze(1) if len(self.active) == 1 else x.transpose(0, 1).flatten(0, 1)

    def segments(self, rows: int, *tensors: Optional[torch.Tensor]) -> Iterator[Tuple[List[int], Tuple[Any, ...]]]:
        """The result of `flat`, cut between tokens into pieces of about this many rows; each with its part of
        ``active``."""
        total, start, stop = sum(self.active), 0, 0
        counts: List[int] = []
        for count in self.active:
            counts.append(count)
            stop += count
            if stop - start >= rows or stop == total:
                part = tensors if stop - start == total else tuple(x if x is None else x[start:stop] for x in tensors)
                yield counts, part
                start, counts = stop, []

    def merge(self, steps: List[torch.Tensor]) -> torch.Tensor:
        """The tensors ``[active, ...]`` of all steps, at least one, as ``[B, T, ...]`` (packed: ``[1, total,
        ...]``)."""
        if self.index is not None:
            flat = torch.cat(steps)
            return torch.zeros_like(flat).index_copy(0, self.index, flat).unsqueeze(0)
        return steps[0].unsqueeze(1) if len(steps) == 1 else torch.stack(steps, dim=1)

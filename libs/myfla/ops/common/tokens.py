"""The token by token view of a batch: what is active at each step, as identical contiguous slices.

A recurrent form that computes every token from slices of one shape gives the same bits however a sequence is split
into calls; one that works on whole ``[B, T, ...]`` tensors does not, since vectorised loops round their remainders
differently.
"""

from typing import List, Optional

import torch


class TokenLayout:
    """Steps of a dense batch ``[B, T, ...]`` or of sequences packed as ``[1, total, ...]``.

    Packed sequences are ordered longest first, so that step t works on the first ``active[t]`` states.

    Args:
        batch, tokens: B and T, or 1 and the packed total.
        cu_seqlens: ``[N + 1]`` offsets, already checked; None for a dense batch.
        device: where index tensors live.
        reverse: walk every sequence from its last token to its first.

    Attributes:
        rows: number of sequences, N.
        active: number of sequences that have a t-th token, for each t.
        order: ``[N]`` int64 sequences longest first, or None where that is the given order.
    """

    def __init__(
        self,
        batch: int,
        tokens: int,
        cu_seqlens: Optional[torch.Tensor],
        device: torch.device,
        reverse: bool = False,
    ) -> None:
        self.reverse = reverse
        self.order: Optional[torch.Tensor] = None
        self.index: Optional[torch.Tensor] = None
        if cu_seqlens is None:
            self.rows, self.active = batch, [batch] * tokens
            return
        bounds = cu_seqlens.to("cpu", torch.int64)
        lengths = bounds[1:] - bounds[:-1]
        self.rows = lengths.numel()
        order = torch.sort(lengths, descending=True, stable=True).indices
        lengths, first = lengths[order], bounds[:-1][order]
        steps = int(lengths[0]) if self.rows else 0
        alive = lengths[None, :] > torch.arange(steps)[:, None]
        offset = torch.arange(steps)[:, None].expand_as(alive)
        index = first + (lengths - 1 - offset if reverse else offset)
        self.active = alive.sum(1).tolist()
        self.index = index[alive].to(device)
        if not torch.equal(order, torch.arange(self.rows)):
            self.order = order.to(device)

    def split(self, x: torch.Tensor) -> List[torch.Tensor]:
        """``[B, T, ...]`` (packed: ``[1, total, ...]``) as one contiguous ``[active, ...]`` per step."""
        if self.index is not None:
            return list(x[0].index_select(0, self.index).split(self.active)) if self.active else []
        steps = x.transpose(0, 1).contiguous().unbind(0)
        return list(reversed(steps)) if self.reverse else list(steps)

    def merge(self, steps: List[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`; at least one step."""
        if self.index is not None:
            flat = torch.cat(steps)
            return torch.zeros_like(flat).index_copy(0, self.index, flat).unsqueeze(0)
        return torch.stack(steps[::-1] if self.reverse else steps, dim=1)

    def sort(self, state: torch.Tensor) -> torch.Tensor:
        """Rows of ``state [N, ...]`` longest first."""
        return state if self.order is None else state.index_select(0, self.order)

    def unsort(self, state: torch.Tensor) -> torch.Tensor:
        """Rows back in the caller's order."""
        return state if self.order is None else torch.zeros_like(state).index_copy(0, self.order, state)

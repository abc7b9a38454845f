"""The token by token view of a batch: what is active at each step, as identical contiguous slices.

A recurrent form that computes every token from slices of one shape gives the same bits however a sequence is split
into calls; one that works on whole ``[B, T, ...]`` tensors does not, since vectorised loops round their remainders
differently.
"""

from typing import Any, Iterator, List, Optional, Sequence, Tuple

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

    def split(self, *tensors: Optional[torch.Tensor]) -> Iterator[Tuple[Any, ...]]:
        """``[B, T, ...]`` (packed: ``[1, total, ...]``) each as one contiguous ``[active, ...]`` for every step."""
        parts = [(None,) * len(self.active) if x is None else self._steps(x) for x in tensors]
        return (tuple(part) for part, _ in zip(zip(*parts), self.active))

    def _steps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        if self.index is not None:
            return x[0].index_select(0, self.index).split(self.active) if self.active else ()
        if x.shape[1] == 1:
            return (x[:, 0].contiguous(),)
        steps = x.transpose(0, 1).contiguous().unbind(0)
        return steps[::-1] if self.reverse else steps

    def merge(self, steps: List[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The inverse of `split`, in another number format; at least one step."""
        if self.index is not None:
            flat = torch.cat(steps).to(dtype)
            return torch.zeros_like(flat).index_copy(0, self.index, flat).unsqueeze(0)
        if len(steps) == 1:
            return steps[0].to(dtype).unsqueeze(1)
        return torch.stack(steps[::-1] if self.reverse else steps, dim=1).to(dtype)

    def sort(self, state: torch.Tensor) -> torch.Tensor:
        """Rows of ``state [N, ...]`` longest first."""
        return state if self.order is None else state.index_select(0, self.order)

    def unsort(self, state: torch.Tensor) -> torch.Tensor:
        """Rows back in the caller's order."""
        return state if self.order is None else torch.zeros_like(state).index_copy(0, self.order, state)

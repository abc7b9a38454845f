"""Which positions of a batch are tokens: one layout for `lengths`, masks and packed sequences.

The stack gets either a dense batch ``[B, T, ...]`` with a token at every position, or tokens packed as
``[1, total, ...]`` with ``cu_seqlens``, and no padding (except for `Layout.real`). The content of padding is not read,
so it may be NaN. Inside a compiler the values of lengths and masks are not available, and are not checked.
"""

from typing import Any, Callable, NamedTuple, Optional, Sequence, Union

import torch

from myfla.models.utils import Cache
from myfla.utils.errors import value_error
from myfla.utils.rows import pack_all, segments_of
from myfla.utils.tracing import tracing
from myfla.utils.varlen import check_cu_seqlens

__all__ = ["Layout", "from_mask", "make_layout"]

_WHO = "encoder"
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Layout(NamedTuple):
    """The positions of the tokens in one call.

    Attributes:
        batch, time: the first two sizes of the caller's data.
        lengths: ``[N]`` int64, tokens of each sequence (N is ``batch``, or the number of packed sequences).
        cu_seqlens: ``[N + 1]`` int32, where each sequence starts in the packed tokens; None for a dense batch.
        tokens: ``[total]`` int64, the flat position of each token in the caller's ``batch * time``; None if all
            positions are tokens. real: ``[batch * time]`` bool in a recorded graph, in which sizes must not depend on
            the number of tokens: the padding then follows as one more sequence, for which a cache has an extra row.
            None otherwise.
    """

    batch: int
    time: int
    lengths: torch.Tensor
    cu_seqlens: Optional[torch.Tensor] = None
    tokens: Optional[torch.Tensor] = None
    real: Optional[torch.Tensor] = None

    def rows(self) -> int:
        """Number of sequences in the stack: N, plus the extra row if there is one."""
        return len(self.lengths) if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """From ``[B, T, ...]`` to the input of the stack: ``[1, total, ...]``, or ``x`` itself if there is no
        padding."""
        if self.tokens is None:
            return x
        flat = x.flatten(0, 1)
        if self.real is not None:  # padding is computed too, so it must not be NaN
            flat = torch.where(self.real.view(-1, *(1,) * (flat.dim() - 1)), flat, flat.new_zeros(()))
        return flat[self.tokens].unsqueeze(0)

    def unpack(self, hidden: torch.Tensor) -> torch.Tensor:
        """The reverse of `pack`, with zeros at the padding."""
        if self.tokens is None:
            return hidden
        flat = hidden.new_zeros(self.batch * self.time, *hidden.shape[2:])
        flat = flat.index_copy(0, self.tokens, hidden[0])
        if self.real is not None:
            flat = torch.where(self.real.unsqueeze(-1), flat, flat.new_zeros(()))
        return flat.view(self.batch, self.time, *hidden.shape[2:])

    def widen(self, cache: Cache) -> Cache:
        """A cache with the extra row, if there is one: a copy of another row, since it is never read."""
        return cache if self.real is None else cache.select([*range(self.batch), 0])

    def narrow(self, cache: Cache) -> Cache:
        """The reverse of `widen`."""
        return cache if self.real is None else cache.select(list(range(self.batch)))

    def segments(self) -> torch.Tensor:
        """``[total]`` int64: the sequence that each packed token belongs to; the number of sequences for pads."""
        if self.cu_seqlens is not None and (self.real is not None or tracing(self.cu_seqlens)):
            return segments_of(self.cu_seqlens, self.batch * self.time)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)

    def reverser(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that reverses each sequence of the stack's data in its place; it is its own inverse."""
        if self.cu_seqlens is None:
            return lambda hidden: hidden.flip(1)
        ends = self.cu_seqlens.long()
        order = (ends[:-1] + ends[1:] - 1)[self.segments()]
        order = order - torch.arange(len(order), device=order.device)
        return lambda hidden: hidden[:, order]


def make_layout(
    x: torch.Tensor,
    lengths: Union[torch.Tensor, Sequence[int], None] = None,
    attention_mask: Optional[torch.Tensor] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
) -> Layout:
    """The layout of a call.

    Args:
        x: ``[B, T, ...]``, or packed ``[1, total, ...]`` with ``cu_seqlens``.
        lengths: ``[B]`` integers; row b has tokens at ``0 .. lengths[b] - 1`` and pads after them.
        attention_mask: ``[B, T]``, 1 or True at tokens, 0 at pads, in any order.
        cu_seqlens: ``[N + 1]`` int32 or int64: where each packed sequence starts, and the end.

    Raises:
        ValueError: more than one of the three, or one that does not fit ``x``.

    Example:
        >>> make_layout(torch.zeros(2, 3, 1), lengths=[3, 1]).cu_seqlens.tolist()
        [0, 3, 4]
    """
    given = dict(lengths=lengths, attention_mask=attention_mask, cu_seqlens=cu_seqlens)
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise value_error(_WHO, named[1], f"must not be given together with {named[0]}", ", ".join(named), "give one")
    batch, time = x.shape[:2]
    if cu_seqlens is not None:
        check_cu_seqlens(_WHO, cu_seqlens, batch, time, x)
        offsets = cu_seqlens.to(device=x.device, dtype=torch.int32)
        return Layout(batch, time, (offsets[1:] - offsets[:-1]).long(), offsets)
    if lengths is not None:
        counts = _check_lengths(lengths, batch, time, x).to(x.device)
        return from_mask(torch.arange(time, device=x.device) < counts[:, None])
    if attention_mask is not None:
        return from_mask(_check_mask(attention_mask, batch, time, x).to(x.device))
    return _dense(batch, time, x.device)


def _dense(batch: int, time: int, device: torch.device) -> Layout:
    return Layout(batch, time, torch.full((batch,), time, dtype=torch.int64, device=device))


def from_mask(mask: torch.Tensor) -> Layout:
    """The layout of rows whose tokens a bool mask ``[B, T]`` shows.

    Example:
        >>> from_mask(torch.tensor([[True, False], [True, True]])).lengths.tolist()
        [1, 2]
    """
    batch, time = mask.shape
    if mask.is_meta:  # padding is not known; the shapes are those of a full batch
        return _dense(batch, time, mask.device)
    if tracing():
        order, offsets = pack_all(mask)
        return Layout(batch, time, mask.sum(1), offsets, order, mask.flatten())
    if bool(mask.all()):
        return _dense(batch, time, mask.device)
    lengths = mask.sum(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    return Layout(batch, time, lengths, offsets, mask.flatten().nonzero().flatten())


def _check_lengths(lengths: Any, batch: int, time: int, x: torch.Tensor) -> torch.Tensor:
    rule = f"must be {batch} integers, one per row of x"
    if not isinstance(lengths, torch.Tensor):
        if not isinstance(lengths, (list, tuple)) or not all(type(n) is int for n in lengths):
            raise value_error(_WHO, "lengths", rule, lengths, "use a list of int or a tensor [B]")
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if lengths.dtype not in _INTEGERS:
        raise value_error(_WHO, "lengths", rule, lengths.dtype, "use lengths.long()")
    if tuple(lengths.shape) != (batch,):
        raise value_error(_WHO, "lengths", rule, f"shape {tuple(lengths.shape)}")
    if lengths.is_meta and not x.is_meta:
        raise value_error(_WHO, "lengths", rule, "a tensor on the device meta")
    wrong = (lengths < 0) | (lengths > time)
    if not tracing(lengths) and bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise value_error(_WHO, "lengths", f"must be from 0 to T={time}", f"{lengths[row].item()} in row {row}")
    return lengths.long()


def _check_mask(mask: Any, batch: int, time: int, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor):
        raise value_error(_WHO, "attention_mask", "must be a tensor [B, T] of 0 and 1", type(mask).__name__)
    if tuple(mask.shape) != (batch, time):
        raise value_error(_WHO, "attention_mask", f"must have shape [B, T] = {[batch, time]}", list(mask.shape))
    if mask.is_meta and not x.is_meta:
        raise value_error(_WHO, "attention_mask", "must have values", "a tensor on the device meta")
    if mask.dtype != torch.bool:
        wrong = (mask != 0) & (mask != 1)
        if not tracing(mask) and bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            got = f"{mask[row, column].item()} at [{row}, {column}]"
            raise value_error(_WHO, "attention_mask", "must hold only 0 and 1", got)
    return mask != 0

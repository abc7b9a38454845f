"""How a batch is cut into chunks, and in which order these are computed.

Recurrent chunk forms do most of their work chunk by chunk, in large batched products, and then a short scan from
each chunk to the next. Here every sequence is cut into chunks of C tokens; **step** s of the scan computes the s-th
chunk of every sequence that has one. Sequences are ordered by length, longest first, so that step s updates the first
``n_s`` states. A dense batch is the case where all sequences are equally long.

A `Block` is computed at one time: some rows and some steps, few enough to stay in the processor's cache. Its
tensors are ``[M * heads, C, D]``, ordered by step, then row, then head: a step is one contiguous slice.
"""

from typing import List, Optional, Tuple

import torch


class Block:
    """A group of chunks that are computed together; made by `ChunkLayout`.

    Attributes:
        chunk: tokens in a chunk, C.
        rows: first and last-plus-one sequence (in the layout's order).
        first_step: number of its first step.
        counts: active rows of each step, not increasing.
        start: number of chunks that come before this block, over the whole layout.
        first_state: number of states that the blocks before this one began with, over the whole layout.
        size: number of chunks, M.
        full: for a dense batch the number of steps with all their tokens; one more may have fewer.
        begin: the first token of its first step.
        places: for packed sequences the token at each of the ``M * C`` positions; None for a dense batch.
        padding: chunk and position of all places past a packed sequence's end; None if there are none.
        filled: the other ones of the ``M * C`` positions; None if these are all.
    """

    def __init__(
        self, layout: "ChunkLayout", rows: Tuple[int, int], first_step: int, counts: List[int], start: int,
        first_state: int,
    ) -> None:
        self.chunk, self.rows, self.first_step, self.counts, self.start = layout.chunk, rows, first_step, counts, start
        self.first_state, self.size = first_state, sum(counts)
        self.begin, self.end = first_step * layout.chunk, layout.length
        self.full = min(len(counts), (layout.length - self.begin) // layout.chunk)
        self.places: Optional[torch.Tensor] = None
        self.padding: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        self.filled: Optional[torch.Tensor] = None
        if layout.index is None:
            return
        stop = start + self.size
        self.places = layout.index[start:stop].reshape(-1)
        first, last = layout.padding_before[start], layout.padding_before[stop]
        if layout.padding is not None and layout.filled is not None and first != last:
            self.padding = layout.padding[0][first:last] - start, layout.padding[1][first:last]
            self.filled = layout.filled[start * self.chunk - first : stop * self.chunk - last] - start * self.chunk

    def states(self, heads: int) -> slice:
        """The range of the states that this block begins with, among those of all sequences."""
        return slice(self.rows[0] * heads, (self.rows[0] + self.counts[0]) * heads)

    def load(self, x: torch.Tensor, out: torch.Tensor, pad: bool = True) -> torch.Tensor:
        """Copy this block's tokens into ``out``, converting and repeating heads as needed.

        Args:
            x: ``[B, T, H, D]``.
            out: ``[M * HV, C, D]``, HV a multiple of H.
            pad: whether positions past a sequence's end must be zero. Without it, those of packed sequences hold
                the last token of the same sequence instead, which costs less.

        Returns:
            ``out``.
        """
        (heads, size), chunk, many = x.shape[2:], self.chunk, out.shape[0] // max(self.size, 1)
        if self.places is not None:
            cut = out.view(self.size, heads, many // heads, chunk, size)
            found = x[0].index_select(0, self.places).view(self.size, chunk, heads, 1, size)
            cut.copy_(found.permute(0, 2, 3, 1, 4))
            if pad and self.padding is not None:  # a mask over all would cost ten times as much
                cut.flatten(1, 2).transpose(1, 2)[self.padding] = 0
            return out
        (first, last), full = self.rows, self.full
        cut = out.view(len(self.counts), last - first, heads, many // heads, chunk, size)
        if full:
            cut[:full].copy_(self._chunks(x).unsqueeze(3))
        if full < len(self.counts):
            tail = x[first:last, self.begin + full * chunk : self.end].transpose(1, 2)
            cut[full, ..., : tail.shape[2], :].copy_(tail.unsqueeze(2))
            cut[full, ..., tail.shape[2] :, :] = 0
        return out

    def store(self, found: torch.Tensor, out: torch.Tensor) -> None:
        """Write this block's tokens back, converting; heads that share a head of ``out`` are summed.

        Args:
            found: ``[M * HV, C, D]``.
            out: ``[B, T, H, D]``, written in place.
        """
        (heads, size), chunk, many = out.shape[2:], self.chunk, found.shape[0] // max(self.size, 1)
        if many != heads:
            found = found.view(self.size * heads, many // heads, chunk, size).sum(1)
        if self.places is not None:
            tokens = found.view(self.size, heads, chunk, size).transpose(1, 2).reshape(-1, heads, size)
            places = self.places
            if self.filled is not None:
                tokens, places = tokens.index_select(0, self.filled), places.index_select(0, self.filled)
            out[0].index_copy_(0, places, tokens.to(out.dtype))
            return
        (first, last), full = self.rows, self.full
        cut = found.view(len(self.counts), last - first, heads, chunk, size)
        if full:
            self._chunks(out).copy_(cut[:full])
        if full < len(self.counts):
            tail = out[first:last, self.begin + full * chunk : self.end].transpose(1, 2)
            tail.copy_(cut[full, ..., : tail.shape[2], :])

    def _chunks(self, x: torch.Tensor) -> torch.Tensor:
        """The complete chunks of ``[B, T, H, D]``, a view ``[steps, rows, H, C, D]``."""
        row, token, head, channel = x.stride()  # one call instead of four, each of which takes as long as a small copy
        shape = (self.full, self.rows[1] - self.rows[0], x.shape[2], self.chunk, x.shape[3])
        at = x.storage_offset() + self.rows[0] * row + self.begin * token
        return x.as_strided(shape, (self.chunk * token, row, head, token, channel), at)


class ChunkLayout:
    """Chunks of a dense batch ``[B, T, ...]`` or of sequences packed as ``[1, total, ...]``.

    Args:
        batch: B.
        tokens: T, or the packed total.
        chunk: tokens in a chunk, C.
        cu_seqlens: ``[N + 1]`` integer offsets of packed sequences, already checked; None for a dense batch.
        device: where index tensors live.
        block_chunks: how many chunks a block may have, at least one step of one row each.
        block_rows: how many sequences a block may have; by default limited by ``block_chunks`` only.

    Attributes:
        rows: number of sequences, N.
        order: ``[N]`` int64, the sequences longest first, or None if they are given in this order.
        total: number of chunks.
        block_states: number of states that all blocks begin with.
        groups: for each group of rows its blocks, in the order of the recurrence. Groups are independent.
        index: ``[total, C]`` int64, the token at each position; None for a dense batch.
        padding: chunk and position of every place past a sequence's end, in order; None if there are none.
        filled: the other places among the ``total * C``, in order; None if these are all.
        padding_before: ``total + 1`` numbers: how many places in ``padding`` lie before each chunk, and how many there
            are.
    """

    def __init__(
        self,
        batch: int,
        tokens: int,
        chunk: int,
        cu_seqlens: Optional[torch.Tensor],
        device: torch.device,
        block_chunks: int,
        block_rows: Optional[int] = None,
    ) -> None:
        self.chunk, self.length = chunk, tokens
        self.index: Optional[torch.Tensor] = None
        self.padding: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        self.filled: Optional[torch.Tensor] = None
        self.padding_before: List[int] = []
        self.order: Optional[torch.Tensor] = None
        most = block_chunks if block_rows is None else min(block_chunks, block_rows)
        if cu_seqlens is None:
            self.rows = batch
            group_rows = max(1, min(batch, most))
            steps = -(-tokens // chunk)
            counts = [[min(first + group_rows, batch) - first] * steps for first in range(0, batch, group_rows)]
        else:
            self.rows = cu_seqlens.numel() - 1
            group_rows = max(1, min(self.rows, most))
            counts = self._pack(cu_seqlens, group_rows, device)
        self.total = sum(sum(group) for group in counts)
        self.groups: List[List[Block]] = []
        start = self.block_states = 0
        for i, group in enumerate(counts):
            rows = (i * group_rows, min((i + 1) * group_rows, self.rows))
            blocks: List[Block] = []
            step = 0
            while step < len(group):
                stop = step + 1
                while stop < len(group) and sum(group[step : stop + 1]) <= block_chunks:
                    stop += 1
                blocks.append(Block(self, rows, step, group[step:stop], start, self.block_states))
                start += blocks[-1].size
                self.block_states += group[step]
                step = stop
            self.groups.append(blocks)

    def _pack(self, cu_seqlens: torch.Tensor, group_rows: int, device: torch.device) -> List[List[int]]:
        """Index the chunks of packed sequences; returns the active rows of each step of each group of rows."""
        order, first, lengths = longest_first(cu_seqlens)
        chunks = torch.div(lengths + self.chunk - 1, self.chunk, rounding_mode="floor")
        row = torch.repeat_interleave(torch.arange(self.rows), chunks)
        step = torch.arange(row.numel()) - torch.repeat_interleave(torch.cumsum(chunks, 0) - chunks, chunks)
        steps = int(chunks[0]) if self.rows else 0
        step_of_group = torch.div(row, group_rows, rounding_mode="floor") * steps + step
        by_step = torch.sort(step_of_group, stable=True).indices
        row, offset = row[by_step], step[by_step, None] * self.chunk + torch.arange(self.chunk)
        padding = offset >= lengths[row][:, None]
        # A position past the end repeats the sequence's last token, so that no value of another sequence is read.
        self.index = (first[row][:, None] + torch.minimum(offset, (lengths[row] - 1)[:, None])).to(device)
        self.padding_before = [0, *padding.sum(1).cumsum(0).tolist()]
        if self.padding_before[-1]:
            chunk_of, position = padding.nonzero(as_tuple=True)
            self.padding = chunk_of.to(device), position.to(device)
            self.filled = (~padding).reshape(-1).nonzero(as_tuple=True)[0].to(device)
        if not torch.equal(order, torch.arange(self.rows)):
            self.order = order.to(device)
        groups = -(-self.rows // group_rows)
        counts = torch.bincount(step_of_group, minlength=groups * steps).view(groups, steps).tolist()
        return [[count for count in group if count] for group in counts]


def longest_first(cu_seqlens: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The order of packed sequences by length, longest first, and in this order their first tokens and lengths. All on
    the host.

    Example:
        >>> [x.tolist() for x in longest_first(torch.tensor([0, 1, 4, 6]))]
        [[1, 2, 0], [1, 4, 0], [3, 2, 1]]
    """
    bounds = cu_seqlens.to("cpu", torch.int64)
    lengths = bounds[1:] - bounds[:-1]
    order = torch.sort(lengths, descending=True, stable=True).indices
    return order, bounds[:-1][order], lengths[order]


def sort_rows(order: Optional[torch.Tensor], state: torch.Tensor) -> torch.Tensor:
    """Rows of ``state [N, ...]`` in an order ``[N]``; None leaves them as they are."""
    return state if order is None else state.index_select(0, order)


def unsort_rows(order: Optional[torch.Tensor], state: torch.Tensor) -> torch.Tensor:
    """The inverse of `sort_rows`; differentiable."""
    return state if order is None else torch.zeros_like(state).index_copy(0, order, state)

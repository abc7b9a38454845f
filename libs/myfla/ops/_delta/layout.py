"""How a batch is cut into chunks, and in which order they are worked on.

Recurrent chunk forms do most of their work chunk by chunk, in large batched products, and then a short scan from
each chunk to the next. Here every sequence is cut into chunks of C tokens; **wave** w holds the w-th chunk of every
sequence that has one. Sequences are ordered by length, longest first, so that wave w works on the first ``n_w``
states. A dense batch is the case where all sequences are equally long.

A `Block` is what is worked on at one time: some rows, some waves, small enough to stay in the processor's cache. Its
tensors are ``[M * heads, C, D]``, ordered by wave, then row, then head: a wave is one contiguous slice.
"""

from typing import Iterator, List, Optional, Tuple

import torch


class Block:
    """A group of chunks worked on together; made by `ChunkLayout`.

    Attributes:
        chunk: tokens in a chunk, C.
        rows: first and last-plus-one sequence (in the layout's order).
        wave: number of its first wave.
        counts: active rows of each wave, not increasing.
        start: number of chunks that come before this block, over the whole layout.
        entered: number of states that the blocks before this one began with, over the whole layout.
        size: number of chunks, M.
    """

    def __init__(
        self,
        layout: "ChunkLayout",
        rows: Tuple[int, int],
        wave: int,
        counts: List[int],
        start: int,
        entered: int = 0,
    ) -> None:
        self.layout, self.rows, self.wave, self.counts, self.start = layout, rows, wave, counts, start
        self.entered = entered
        self.chunk, self.size = layout.chunk, sum(counts)

    def span(self, heads: int) -> slice:
        """Where this block's matrices lie among those of the whole layout."""
        return slice(self.start * heads, (self.start + self.size) * heads)

    def states(self, heads: int) -> slice:
        """Where the states that this block begins with lie among those of all sequences."""
        return slice(self.rows[0] * heads, (self.rows[0] + self.counts[0]) * heads)

    def opening(self, heads: int) -> slice:
        """Where they lie among the states that all blocks begin with."""
        return slice(self.entered * heads, (self.entered + self.counts[0]) * heads)

    def load(self, x: torch.Tensor, out: torch.Tensor, pad: bool = True) -> torch.Tensor:
        """Copy this block's tokens into ``out``, converting and repeating heads as needed.

        Args:
            x: ``[B, T, H, D]``.
            out: ``[M, HV, C, D]``, HV a multiple of H.
            pad: whether positions past a sequence's end must be zero. Without it, those of packed sequences hold
                the last token of the same sequence instead, which costs less.

        Returns:
            ``out``.
        """
        heads, repeat = x.shape[2], out.shape[1] // x.shape[2]
        for source, first, c in self._pieces(x):
            waves, rows = source.shape[:2]
            piece = self._piece(out, waves, rows, first, c)
            if c < self.chunk:
                self._piece(out, waves, rows, first)[..., c:, :] = 0
            if repeat == 1:
                piece.copy_(source)
            else:
                piece.view(waves, rows, heads, repeat, c, piece.shape[-1]).copy_(source.unsqueeze(3))
        holes = self.holes() if pad else None
        if holes is not None:  # a mask over all would cost ten times as much
            out.transpose(1, 2)[holes] = 0
        return out

    def store(self, buffer: torch.Tensor, out: torch.Tensor) -> None:
        """Write this block's tokens back, converting; heads that share one of ``out``'s are summed.

        Args:
            buffer: ``[M, HV, C, D]``.
            out: ``[B, T, H, D]``, written in place.
        """
        if out.shape[2] != buffer.shape[1]:
            buffer = buffer.view(buffer.shape[0], out.shape[2], -1, *buffer.shape[2:]).sum(2)
        if self.layout.index is not None:
            tokens, positions = self.tokens(self.layout.index)
            found = buffer.transpose(1, 2).reshape(-1, out.shape[2], out.shape[3])
            found = found if positions is None else found.index_select(0, positions)
            out[0].index_copy_(0, tokens, found.to(out.dtype))
            return
        for target, first, c in self._pieces(out):
            waves, rows = target.shape[:2]
            target.copy_(self._piece(buffer, waves, rows, first, c))

    def holes(self) -> Optional[Tuple[torch.Tensor, torch.Tensor]]:
        """Chunk and position of what lies past a packed sequence's end; None where nothing does."""
        layout = self.layout
        if layout.hole is None or layout.holes_before[self.start] == layout.holes_before[self.start + self.size]:
            return None
        at = slice(layout.holes_before[self.start], layout.holes_before[self.start + self.size])
        return layout.hole[0][at] - self.start, layout.hole[1][at]

    def tokens(self, index: torch.Tensor) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """The tokens of a packed block and their positions among its ``M * C`` (None: all, in order)."""
        layout, index = self.layout, index[self.span(1)].reshape(-1)
        if layout.kept is None or self.holes() is None:
            return index, None
        first, last = (i * self.chunk - layout.holes_before[i] for i in (self.start, self.start + self.size))
        positions = layout.kept[first:last] - self.start * self.chunk
        return index.index_select(0, positions), positions

    def _piece(
        self, matrices: torch.Tensor, waves: int, rows: int, first: int, tokens: Optional[int] = None
    ) -> torch.Tensor:
        """``[waves, rows, HV, C, D]`` of ``matrices [M, HV, C, D]``, from chunk ``first`` on, or of fewer tokens."""
        part = matrices if waves * rows == self.size else matrices[first : first + waves * rows]
        part = part.view((waves, rows, *part.shape[1:]))
        return part if tokens in (None, self.chunk) else part[..., :tokens, :]

    def _pieces(self, x: torch.Tensor) -> Iterator[Tuple[torch.Tensor, int, int]]:
        """Views (packed: gathered copies) ``[waves, rows, H, c, D]`` of x, each with its first chunk and its c."""
        layout, chunk, (heads, channels) = self.layout, self.chunk, x.shape[2:]
        if layout.index is not None:
            gathered = x[0].index_select(0, layout.index[self.span(1)].reshape(-1))
            yield gathered.view(1, self.size, chunk, heads, channels).transpose(2, 3), 0, chunk
            return
        (first, last), begin = self.rows, self.wave * chunk
        full = min(len(self.counts), (layout.length - begin) // chunk)
        if full:
            row, token, head, channel = x.stride()  # one call instead of four: they cost as much as small copies
            at = x.storage_offset() + first * row + begin * token
            shape = (full, last - first, heads, chunk, channels)
            yield x.as_strided(shape, (chunk * token, row, head, token, channel), at), 0, chunk
        if full < len(self.counts):
            tail = x[first:last, begin + full * chunk : layout.length]
            yield tail.unsqueeze(0).transpose(2, 3), full * (last - first), tail.shape[1]


class ChunkLayout:
    """Chunks of a dense batch ``[B, T, ...]`` or of sequences packed as ``[1, total, ...]``.

    Args:
        batch: B.
        tokens: T, or the packed total.
        chunk: tokens in a chunk, C.
        cu_seqlens: ``[N + 1]`` integer offsets of packed sequences, already checked; None for a dense batch.
        device: where index tensors live.
        block_chunks: how many chunks a block may have, at least one wave of one row each.
        block_rows: how many sequences a block may have; by default only ``block_chunks`` limits them.
        block_heads: how many heads of the keys are worked on at a time; by default all. For the caller to keep to.

    Attributes:
        rows: number of sequences, N.
        order: ``[N]`` int64, the sequences longest first, or None where that is the given order.
        total: number of chunks.
        openings: number of states that all blocks begin with.
        groups: for each group of rows its blocks, in the order of the recurrence. Groups are independent.
        index: ``[total, C]`` int64, the token at each position; None for a dense batch.
        hole: chunk and position of every place past a sequence's end, in order; None where there is none.
        kept: the other places among the ``total * C``, in order; None where that is all.
        holes_before: ``total + 1`` numbers of places in ``hole`` before each chunk, and of all.
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
        block_heads: Optional[int] = None,
    ) -> None:
        self.chunk, self.length, self.block_heads = chunk, tokens, block_heads
        self.index: Optional[torch.Tensor] = None
        self.hole: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
        self.kept: Optional[torch.Tensor] = None
        self.holes_before: List[int] = []
        self.order: Optional[torch.Tensor] = None
        most = block_chunks if block_rows is None else min(block_chunks, block_rows)
        if cu_seqlens is None:
            self.rows = batch
            step = max(1, min(batch, most))
            waves = -(-tokens // chunk)
            counts = [[min(first + step, batch) - first] * waves for first in range(0, batch, step)]
        else:
            self.rows = cu_seqlens.numel() - 1
            step = max(1, min(self.rows, most))
            counts = self._pack(cu_seqlens.to("cpu", torch.int64), step, device)
        self.total = sum(sum(group) for group in counts)
        self.groups: List[List[Block]] = []
        start = self.openings = 0
        for i, group in enumerate(counts):
            rows = (i * step, min((i + 1) * step, self.rows))
            blocks: List[Block] = []
            wave = 0
            while wave < len(group):
                stop = wave + 1
                while stop < len(group) and sum(group[wave : stop + 1]) <= block_chunks:
                    stop += 1
                blocks.append(Block(self, rows, wave, group[wave:stop], start, self.openings))
                start += blocks[-1].size
                self.openings += group[wave]
                wave = stop
            self.groups.append(blocks)

    def _pack(self, bounds: torch.Tensor, step: int, device: torch.device) -> List[List[int]]:
        """Index the chunks of packed sequences; returns the active rows of each wave of each group of rows."""
        lengths = bounds[1:] - bounds[:-1]
        order = torch.sort(lengths, descending=True, stable=True).indices
        lengths, first = lengths[order], bounds[:-1][order]
        chunks = torch.div(lengths + self.chunk - 1, self.chunk, rounding_mode="floor")
        row = torch.repeat_interleave(torch.arange(self.rows), chunks)
        wave = torch.arange(row.numel()) - torch.repeat_interleave(torch.cumsum(chunks, 0) - chunks, chunks)
        waves = int(chunks[0]) if self.rows else 0
        wave_of_group = torch.div(row, step, rounding_mode="floor") * waves + wave
        by_wave = torch.sort(wave_of_group, stable=True).indices
        row, offset = row[by_wave], wave[by_wave, None] * self.chunk + torch.arange(self.chunk)
        hole = offset >= lengths[row][:, None]
        # A position past the end repeats the sequence's last token, so that nothing crosses between sequences.
        self.index = (first[row][:, None] + torch.minimum(offset, (lengths[row] - 1)[:, None])).to(device)
        self.holes_before = [0, *hole.sum(1).cumsum(0).tolist()]
        if self.holes_before[-1]:
            chunk_of, position = hole.nonzero(as_tuple=True)
            self.hole = chunk_of.to(device), position.to(device)
            self.kept = (~hole).reshape(-1).nonzero(as_tuple=True)[0].to(device)
        if not torch.equal(order, torch.arange(self.rows)):
            self.order = order.to(device)
        groups = -(-self.rows // step)
        counts = torch.bincount(wave_of_group, minlength=groups * waves).view(groups, waves).tolist()
        return [[count for count in group if count] for group in counts]


def sort_rows(layout: ChunkLayout, state: torch.Tensor) -> torch.Tensor:
    """Rows of ``state [N, ...]`` in the layout's order."""
    return state if layout.order is None else state.index_select(0, layout.order)


def unsort_rows(layout: ChunkLayout, state: torch.Tensor) -> torch.Tensor:
    """Rows back in the caller's order."""
    return state if layout.order is None else torch.empty_like(state).index_copy_(0, layout.order, state)

"""How a batch is cut into chunks, and in which order they are worked on.

Recurrent chunk forms do most of their work chunk by chunk, in large batched products, and then a short scan from
each chunk to the next. Here every sequence is cut into chunks of C tokens; **wave** w holds the w-th chunk of every
sequence that has one. Sequences are ordered by length, longest first, so that wave w works on the first ``n_w``
states. A dense batch is the case where all sequences are equally long.

A `Block` is what is worked on at one time: some rows, some waves, small enough to stay in the processor's cache. Its
tensors are ``[M * heads, C, D]``, ordered by wave, then row, then head: a wave is one contiguous slice.
"""

from typing import Iterator, List, Optional, Sequence, Tuple

import torch


class Block:
    """A group of chunks worked on together; made by `ChunkLayout.blocks`.

    Attributes:
        chunk: tokens in a chunk, C.
        rows: first and last-plus-one sequence (in the layout's order).
        counts: active rows of each wave, not increasing.
        start: number of chunks that come before this block, over the whole layout.
    """

    def __init__(self, layout: "ChunkLayout", rows: Tuple[int, int], wave: int, counts: List[int], start: int) -> None:
        self.layout, self.rows, self.wave, self.counts, self.start = layout, rows, wave, counts, start
        self.chunk = layout.chunk

    @property
    def size(self) -> int:
        """Number of chunks, M."""
        return sum(self.counts)

    @property
    def span(self) -> slice:
        """Where this block's chunks lie among all chunks of the layout."""
        return slice(self.start, self.start + self.size)

    def waves(self, heads: int) -> List[slice]:
        """For each wave the slice of its matrices, for tensors with ``heads`` matrices per chunk."""
        out, at = [], 0
        for count in self.counts:
            out.append(slice(at * heads, (at + count) * heads))
            at += count
        return out

    def load(self, x: torch.Tensor, out: torch.Tensor, pad: bool = True) -> torch.Tensor:
        """Copy this block's tokens into ``out``, converting and repeating heads as needed.

        Args:
            x: ``[B, T, H, D]``.
            out: ``[M, HV, C, D]`` (any strides), HV a multiple of H.
            pad: whether positions past a sequence's end must be zero. Without it they may hold any token of the same
                chunk, which costs less.

        Returns:
            ``out``.
        """
        heads = out.shape[1]
        repeat = heads // x.shape[2]
        target = out.unflatten(1, (x.shape[2], repeat)) if repeat > 1 else out.unsqueeze(2)
        for source, m, c in self._pieces(x):
            target[m, :, :, :c] = source.permute(0, 2, 1, 3).unsqueeze(2)
            if c < self.chunk:
                target[m, :, :, c:] = 0
        if pad and self.layout.index is not None:
            holes = self.layout.holes(self)
            if holes is not None:
                out.masked_fill_(holes.view(self.size, 1, self.chunk, 1), 0)
        return out

    def store(self, buffer: torch.Tensor, out: torch.Tensor, sum_heads: bool = False) -> None:
        """Write this block's tokens back.

        Args:
            buffer: ``[M, HV, C, D]``.
            out: ``[B, T, H, D]``, written in place, converted to its dtype.
            sum_heads: sum the ``HV / H`` heads that share one of ``out``'s; otherwise H is HV.
        """
        if sum_heads and out.shape[2] != buffer.shape[1]:
            buffer = buffer.unflatten(1, (out.shape[2], -1)).sum(2)
        layout = self.layout
        if layout.index is not None:
            tokens, positions = layout.tokens(self)
            rows = buffer.transpose(1, 2).reshape(-1, out.shape[2], out.shape[3])
            rows = rows if positions is None else rows.index_select(0, positions)
            out[0].index_copy_(0, tokens, rows.to(out.dtype))
            return
        for target, m, c in self._pieces(out):
            target.copy_(buffer[m, :, :c].transpose(1, 2))

    def _pieces(self, x: torch.Tensor) -> Iterator[Tuple[torch.Tensor, slice, int]]:
        """Views or gathered copies ``[m, c, H, D]`` of x with the chunks they belong to and their length c."""
        layout, chunk = self.layout, self.chunk
        if layout.index is not None:
            index = layout.index[self.span].reshape(-1)
            gathered = x[0].index_select(0, index)
            yield gathered.view(self.size, chunk, x.shape[2], x.shape[3]), slice(0, self.size), chunk
            return
        first, last = self.rows
        count, batch = len(self.counts), last - first
        begin = self.wave * chunk
        full = min(count, (layout.length - begin) // chunk)
        x = x[first:last]
        if full:
            # [b, w, c, H, D] -> chunks ordered by wave, then row
            view = x[:, begin : begin + full * chunk].unflatten(1, (full, chunk)).transpose(0, 1)
            if batch == 1 or full == 1:
                yield view.reshape(full * batch, chunk, x.shape[2], x.shape[3]), slice(0, full * batch), chunk
            else:
                for wave in range(full):
                    yield view[wave], slice(wave * batch, (wave + 1) * batch), chunk
        if full < count:
            tail = x[:, begin + full * chunk : layout.length]
            yield tail, slice(full * batch, self.size), tail.shape[1]


class ChunkLayout:
    """Chunks of a dense batch ``[B, T, ...]`` or of sequences packed as ``[1, total, ...]``.

    Args:
        batch: B.
        tokens: T, or the packed total.
        chunk: tokens in a chunk, C.
        cu_seqlens: ``[N + 1]`` integer offsets of packed sequences; already checked. None for a dense batch.
        device: where index tensors live.

    Attributes:
        rows: number of sequences, N.
        order: ``[N]`` int64, the sequences longest first, or None where that is the given order.
        total: number of chunks.
    """

    def __init__(
        self, batch: int, tokens: int, chunk: int, cu_seqlens: Optional[torch.Tensor], device: torch.device
    ) -> None:
        self.chunk, self.length = chunk, tokens
        self.index: Optional[torch.Tensor] = None
        self.order: Optional[torch.Tensor] = None
        if cu_seqlens is None:
            self.rows = batch
            self.active = [batch] * (-(-tokens // chunk)) if batch else []
        else:
            self._pack(cu_seqlens.to("cpu", torch.int64), device)
        self.total = sum(self.active)

    def _pack(self, bounds: torch.Tensor, device: torch.device) -> None:
        lengths = bounds[1:] - bounds[:-1]
        self.rows = lengths.numel()
        order = torch.sort(lengths, descending=True, stable=True).indices
        lengths, first = lengths[order], bounds[:-1][order]
        chunks = (lengths + self.chunk - 1) // self.chunk
        waves = int(chunks[0]) if self.rows else 0
        active = (chunks[None, :] > torch.arange(waves)[:, None]).sum(1)
        self.active = active.tolist()
        wave = torch.repeat_interleave(torch.arange(waves), active)
        row = torch.arange(wave.numel()) - torch.repeat_interleave(torch.cumsum(active, 0) - active, active)
        offset = wave[:, None] * self.chunk + torch.arange(self.chunk)
        self._hole = offset >= lengths[row][:, None]
        self._wave_row = (wave, row)
        # A position past the end repeats the sequence's last token, so that nothing crosses between sequences.
        index = first[row][:, None] + torch.minimum(offset, (lengths[row] - 1)[:, None])
        self._last = bool(self._hole.any())
        self.index = index.to(device)
        self._hole = self._hole.to(device)
        if not torch.equal(order, torch.arange(self.rows)):
            self.order = order.to(device)

    def holes(self, block: Block) -> Optional[torch.Tensor]:
        """``[M, C]`` bool, true past a sequence's end; None where there is no such position."""
        return self._hole[block.span] if self._last else None

    def tokens(self, block: Block) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """The tokens of a packed block and their positions among its ``M * C`` (None: all, in order)."""
        index = self.index[block.span].reshape(-1)
        if not self._last:
            return index, None
        positions = (~self._hole[block.span]).reshape(-1).nonzero(as_tuple=True)[0]
        return index.index_select(0, positions), positions

    def blocks(self, row_elements: int, budget: int) -> List[List[Block]]:
        """Cut the work into cache-sized blocks.

        Args:
            row_elements: elements of one chunk of one row in the largest buffer, ``heads * C * D``.
            budget: how many elements that buffer may have.

        Returns:
            For each group of rows its blocks, in the order of the recurrence. Groups of rows are independent.
            Only a dense batch is split by rows within a wave; the chunks of a packed one stay numbered by wave.
        """
        per_block = max(1, budget // max(row_elements, 1))
        if not self.active:
            return []
        groups = []
        step = self.rows if self.index is not None else min(self.rows, per_block)
        start = 0
        for first in range(0, self.rows, step):
            last = min(first + step, self.rows)
            blocks: List[Block] = []
            wave = 0
            while wave < len(self.active):
                counts: List[int] = []
                while wave + len(counts) < len(self.active):
                    count = min(self.active[wave + len(counts)], last) - first
                    if counts and sum(counts) + count > per_block:
                        break
                    counts.append(count)
                blocks.append(Block(self, (first, last), wave, counts, start))
                start += sum(counts)
                wave += len(counts)
            groups.append(blocks)
        return groups


def sort_rows(layout: ChunkLayout, state: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    """Rows of ``state [N, ...]`` in the layout's order."""
    return state if state is None or layout.order is None else state.index_select(0, layout.order)


def unsort_rows(layout: ChunkLayout, state: torch.Tensor) -> torch.Tensor:
    """Rows back in the caller's order."""
    return state if layout.order is None else torch.empty_like(state).index_copy_(0, layout.order, state)

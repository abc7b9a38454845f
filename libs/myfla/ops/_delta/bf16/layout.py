"""Which token is in which chunk, and the order of the chunks.

Every sequence is cut into chunks of C tokens; **step** s of the scan computes the s-th chunk of every row that has one.
A row is a sequence, or a part of a long one where there are too few to fill a GPU. Rows are ordered by length, longest
first, so that step s computes the first rows and its chunks lie next to each other. A dense batch is the case where all
rows are equally long; its layout is computed on the device, without reading anything back.

`_delta.layout` cuts a batch the same way for CPUs: there a block of chunks that fits a cache is one strided view, while
on a GPU one kernel gathers all tokens by index.
"""

from typing import Callable, List, NamedTuple, Optional, Tuple, Union

import torch

from myfla.ops._delta.bf16.static import mark_static
from myfla.utils.tracing import compiling

Index = Union[slice, torch.Tensor]
WORD = torch.int64
"""A dtype of the size of four bfloat16 numbers."""


class Places(NamedTuple):
    """The places of tokens; n chunks of C tokens, N tokens in all."""

    token: torch.Tensor  # [n, C] int64 the token in each place; any token in an empty place
    filled: Optional[torch.Tensor]  # [n, C] bool whether the place has a token; None if all have
    place: torch.Tensor  # [N] int64  the place ``chunk * C + c`` of each token

    def load(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        """The chunks ``[n * heads, C, D]`` of tokens ``x [N, H, D]``, H a divisor of heads; zeros in empty places."""
        words = _as_words(x)
        at = torch.arange(heads, device=x.device) // (heads // x.shape[1])
        chunks = words[self.token.unsqueeze(1), at.unsqueeze(1)]
        if self.filled is not None:
            chunks = chunks.masked_fill(~self.filled[:, None, :, None], 0)
        return chunks.view(x.dtype).flatten(0, 1) if words is not x else chunks.flatten(0, 1)

    def store(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The inverse: ``x [n * heads, C, D]`` as tokens like ``like [N, H, D]``; heads that share one are summed."""
        (count, chunk), heads = self.token.shape, like.shape[1]
        x = x.view(count, heads, -1, chunk, like.shape[2])
        x = (x[:, :, 0] if x.shape[2] == 1 else x.sum(2)).to(like.dtype)
        words = _as_words(x)
        at, c = torch.div(self.place, chunk, rounding_mode="floor"), self.place % chunk
        tokens = words[at.unsqueeze(1), torch.arange(heads, device=x.device), c.unsqueeze(1)]
        return tokens.view(x.dtype) if words is not x else tokens


class Layout(NamedTuple):
    """How a batch is cut."""

    chunk: int  # C
    heads: int  # HV
    sequences: int  # N
    steps: Tuple[int, ...]  # rows that have a chunk at each step of the scan, never more than at the step before
    places: Places
    sequence: Optional[torch.Tensor]  # [rows] which sequence each row begins; None: every row is a sequence, in order
    # where some sequences are several rows: for each j the sequences with a j-th row, and that row
    parts: Tuple[Tuple[Index, Index], ...]

    @property
    def rows(self) -> int:
        """Rows that are scanned at the same time."""
        return self.steps[0] if self.steps else 0

    @property
    def matrices(self) -> int:
        """M: chunks of all heads."""
        return sum(self.steps) * self.heads

    def by_step(self, x: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """``[M, ...]`` as one view for each step."""
        return x.split([rows * self.heads for rows in self.steps])


def load_into(places: Places, x: torch.Tensor, heads: int, out: torch.Tensor) -> None:
    """Copy the tokens ``x [N, H, D]`` into ``out [n * heads, C, D]``."""
    mark_static(*places, x, heads, out)
    out.copy_(places.load(x, heads))


def chunk_size(tokens: int) -> int:
    """Tokens in a chunk, for sequences of this many tokens."""
    return 64 if tokens > 32 else 32 if tokens > 16 else 16


def count_parts(rows: int, chunks: int) -> int:
    """The number of parts into which a sequence is cut to be scanned at the same time: about the square root of its
    number of chunks while the GPU is not full.

    Args:
        rows: sequences times heads.
        chunks: of the longest sequence.

    Example:
        >>> count_parts(16, 256), count_parts(128, 256)
        (8, 1)
    """
    parts = 1
    while 8 * parts * parts <= chunks and 2 * parts * rows <= 256:
        parts *= 2
    return parts if parts > 2 else 1


def dense_layout(
    batch: int, tokens: int, heads: int, device: torch.device, chunk: Optional[int] = None,
    parts: Optional[int] = None, run: Callable[[Callable], Callable] = lambda function: function,
) -> Layout:
    """The layout of ``[B, T, HV, ...]``; chunks and parts are chosen where they are not given. ``run`` is applied to
    `dense_places` before it is called, to compile it."""
    chunk = chunk or chunk_size(tokens)
    count = -(-tokens // chunk)
    parts = parts or count_parts(batch * heads, count)
    steps, rows = -(-count // parts), batch * parts
    places = run(dense_places)(batch, tokens, steps, parts, chunk, tokens < parts * steps * chunk, device)
    both: List[Tuple[Index, Index]] = [(slice(None), slice(j, None, parts)) for j in range(parts)]
    return Layout(chunk, heads, batch, (rows,) * steps, places, None, tuple(both) if parts > 1 else ())


def dense_places(
    batch: int, tokens: int, steps: int, parts: int, chunk: int, ragged: bool, device: torch.device
) -> Places:
    """The places of rows with ``steps`` chunks each, ``parts`` rows for each sequence; ragged: the last row of each is
    not full."""
    mark_static(chunk, parts)
    rows, c = batch * parts, torch.arange(chunk, device=device)
    n = torch.arange(steps * rows, device=device).unsqueeze(1)
    row, step = n % rows, torch.div(n, rows, rounding_mode="floor")
    token = (row % parts * steps + step) * chunk + c  # within its sequence
    filled = token < tokens if ragged else None
    token = torch.div(row, parts, rounding_mode="floor") * tokens + token.clamp(max=tokens - 1)
    at = torch.arange(batch * tokens, device=device)
    sequence, at = torch.div(at, tokens, rounding_mode="floor"), at % tokens
    number = torch.div(at, chunk, rounding_mode="floor")  # of its chunk within the sequence
    row = sequence * parts + torch.div(number, steps, rounding_mode="floor")
    return Places(token, filled, (number % steps * rows + row) * chunk + at % chunk)


def packed_layout(
    cu_seqlens: torch.Tensor, heads: int, device: torch.device, chunk: Optional[int] = None,
    parts: Optional[int] = None,
) -> Layout:
    """The layout of sequences packed as ``[1, T, HV, ...]``; their offsets are read on the host.

    Args:
        cu_seqlens: ``[N + 1]`` integer offsets; empty sequences have no row.
        heads: HV.
        device: of the tokens.
        chunk: tokens in a chunk; chosen by the average length.
        parts: into how many parts the longest sequence is cut; others are cut into parts of the same length. Chosen by
            default.
    """
    bounds = cu_seqlens.to("cpu", torch.int64)
    lengths = bounds[1:] - bounds[:-1]
    total = int(bounds[-1])
    chunk = chunk or chunk_size(total // max(1, int((lengths > 0).sum())))
    counts = (lengths + chunk - 1) // chunk if total else lengths
    longest = int(counts.max()) if len(counts) else 0
    parts = parts or count_parts(int((lengths > 0).sum()) * heads, longest)
    most = max(1, -(-longest // parts))  # chunks of a row
    pieces = (counts + most - 1) // most
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), pieces)
    part = torch.arange(len(sequence)) - torch.repeat_interleave(pieces.cumsum(0) - pieces, pieces)
    size = (counts[sequence] - part * most).clamp(max=most)
    order = torch.sort(size, descending=True, stable=True).indices
    sequence, part, size = sequence[order], part[order], size[order]
    most_steps = int(size[0]) if len(size) else 0
    steps = len(size) - torch.bincount(size, minlength=most_steps + 1).cumsum(0)[:most_steps]
    step = torch.repeat_interleave(torch.arange(most_steps), steps)
    row = torch.arange(len(step)) - torch.repeat_interleave(steps.cumsum(0) - steps, steps)
    first = (part[row] * most + step) * chunk
    left = lengths[sequence[row]] - first
    full = bool((left >= chunk).all())
    start, left = torch.stack((bounds[:-1][sequence[row]] + first, left)).to(device)
    places = _packed_places(start, None if full else left, chunk, total)
    both: List[Tuple[Index, Index]] = []
    for j in range(int(pieces.max()) if len(pieces) else 0):
        rows = torch.nonzero(part == j)[:, 0]
        both.append((sequence[rows].to(device), rows.to(device)))
    cut = tuple(both) if len(both) > 1 else ()
    return Layout(chunk, heads, len(lengths), tuple(steps.tolist()), places, sequence.to(device), cut)


def _packed_places(start: torch.Tensor, left: Optional[torch.Tensor], chunk: int, tokens: int) -> Places:
    """The places of chunks that begin at tokens ``start [n]``, with ``left [n]`` tokens of their sequence from there
    on."""
    c = torch.arange(chunk, device=start.device)
    token = start.unsqueeze(1) + c
    filled = None if left is None else c < left.unsqueeze(1)
    target = token if filled is None else torch.where(filled, token, torch.full_like(token, tokens))
    place = torch.zeros(tokens + 1, dtype=torch.int64, device=start.device)
    place.scatter_(0, target.flatten(), torch.arange(token.numel(), device=start.device))
    return Places(token.clamp(max=max(tokens - 1, 0)), filled, place[:tokens])


def _as_words(x: torch.Tensor) -> torch.Tensor:
    """``x [..., D]`` viewed as numbers of 8 bytes, if possible: a GPU gathers these faster than half-precision
    numbers."""
    if compiling() or x.element_size() != 2 or x.stride(-1) != 1:
        return x
    strides = [stride for stride, size in zip(x.stride()[:-1], x.shape) if size > 1]
    whole = x.shape[-1] % 4 == 0 and x.storage_offset() % 4 == 0 and all(stride % 4 == 0 for stride in strides)
    return x.view(WORD) if whole else x

"""How the half-precision form cuts a batch into chunks, and the factors that stand beside every token.

A dense batch ``[B, T, H, D]`` becomes ``[B, HV, n, C, D]``: the chunks of one head of one sequence stand in a row, so
that chunk i of all of them is one slice with one stride, and all chunks of all of them one batch of matrices.
"""

from typing import NamedTuple, Optional, Tuple

import torch

from myfla.utils.tracing import compiling

WORD = torch.int64
"""As long as four bfloat16."""


class Cut(NamedTuple):
    """How a dense batch is cut into chunks."""

    batch: int
    tokens: int
    heads: int  # HV
    chunk: int  # C
    count: int  # type: ignore[assignment]  # hides tuple.count; chunks of a sequence, the last ones perhaps empty
    groups: int  # parts of a sequence that are scanned side by side

    @property
    def rows(self) -> int:
        """Scans that run side by side."""
        return self.batch * self.heads * self.groups

    @property
    def matrices(self) -> int:
        """M: chunks of all heads of all sequences."""
        return self.batch * self.heads * self.count

    def by_row(self, x: torch.Tensor) -> torch.Tensor:
        """``[M, ...]`` as ``[rows, chunks of a row, ...]``, a view."""
        return x.view((self.rows, self.count // self.groups) + tuple(x.shape[1:]))

    def load(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Copy the tokens of ``x [B, T, H, D]``, H a divisor of HV, into ``out [M, C, D]``; zeros after the end.

        Returns:
            What ``out`` holds now, for a compiler as a value that it can use without reading ``out``.
        """
        heads, repeat = x.shape[2], self.heads // x.shape[2]
        if compiling():
            missing = self.count * self.chunk - self.tokens
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
            rows = x.view(self.batch, self.count, self.chunk, heads, 1, x.shape[3])
            rows = rows.expand(-1, -1, -1, -1, repeat, -1).permute(0, 3, 4, 1, 2, 5)
            rows = rows.reshape(self.matrices, self.chunk, x.shape[3]).to(out.dtype)
            out.copy_(rows)
            return rows
        x, target = same_words(x, out)
        source = x.permute(0, 2, 1, 3).unsqueeze(2)
        target = target.view(self.batch, heads, repeat, self.count, self.chunk, x.shape[3])
        whole, rest = self.tokens // self.chunk, self.tokens % self.chunk
        if whole:
            full = source[:, :, :, : whole * self.chunk].unflatten(3, (whole, self.chunk))
            target[:, :, :, :whole].copy_(full)
        if rest:
            target[:, :, :, whole, :rest].copy_(source[:, :, :, whole * self.chunk :])
            target[:, :, :, whole, rest:].zero_()
        if whole + (rest > 0) < self.count:
            target[:, :, :, whole + (rest > 0) :].zero_()
        return out

    def column(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A number for each token, ``[B, T, H]``, as ``[M, C, 1]``."""
        out = torch.empty(self.matrices, self.chunk, 1, dtype=dtype, device=x.device)
        return self.load(x.unsqueeze(-1), out)

    def store(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The inverse of `load`: ``[M, C, D]`` as a tensor like ``like [B, T, H, D]``; shared heads are summed."""
        heads = like.shape[2]
        x = x.view(self.batch, heads, -1, self.count, self.chunk, like.shape[3])
        x = x[:, :, 0] if x.shape[2] == 1 else x.sum(2)
        if compiling():
            return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, : self.tokens].to(like.dtype).contiguous()
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        x, target = same_words(x, out)
        target = target.transpose(1, 2)
        whole, rest = self.tokens // self.chunk, self.tokens % self.chunk
        if whole:
            target[:, :, : whole * self.chunk].unflatten(2, (whole, self.chunk)).copy_(x[:, :, :whole])
        if rest:
            target[:, :, whole * self.chunk :].copy_(x[:, :, whole, :rest])
        return out


def same_words(x: torch.Tensor, y: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Both tensors ``[..., D]`` seen as words of 8 bytes, if that fits both: a GPU copies words faster than numbers."""
    if compiling() or x.dtype != y.dtype or not (_splits(x) and _splits(y)):
        return x, y
    return x.view(WORD), y.view(WORD)


def _splits(x: torch.Tensor) -> bool:
    """Whether every row of x consists of whole words."""
    ratio = 8 // x.element_size()
    places = [x.shape[-1], x.storage_offset()] + [s for s, size in zip(x.stride()[:-1], x.shape[:-1]) if size > 1]
    return x.stride(-1) == 1 and all(place % ratio == 0 for place in places)


def cut_dense(v: torch.Tensor, chunk: Optional[int]) -> Cut:
    """Choose chunks and groups for a batch ``[B, T, HV, V]``."""
    batch, tokens, heads = v.shape[:3]
    chunk = chunk or (64 if tokens > 32 else 32 if tokens > 16 else 16)
    count = -(-tokens // chunk)
    groups = choose_groups(batch * heads, count)
    return Cut(batch, tokens, heads, chunk, -(-count // groups) * groups, groups)


def choose_groups(rows: int, count: int) -> int:
    """How many parts of a sequence to scan side by side: about the root of its chunks while the GPU is not full.

    Args:
        rows: sequences times heads.
        count: chunks of a sequence.
    """
    groups = 1
    while 8 * groups * groups <= count and 2 * groups * rows <= 256:
        groups *= 2
    return groups if groups > 2 else 1

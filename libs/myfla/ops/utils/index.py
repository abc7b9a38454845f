"""Arithmetic on packed sequences: lengths, offsets, and the numbers of tokens and chunks.

`cu_seqlens [N + 1]` are the first tokens of N packed sequences, and the end of the last; `lens [N]` are their lengths.
Nothing is stored between calls, so changes of a mask or of offsets in place take effect. Several functions take
``cu_seqlens_cpu``, a copy of ``cu_seqlens`` on the CPU, whose values can be read without waiting for the device.
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.utils.errors import value_error
from myfla.utils.tensors import check_integers, check_size, check_tensor


def prepare_lens(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Lengths of packed sequences.

    Args:
        cu_seqlens: ``[N + 1]`` integers.

    Returns:
        ``[N]``, with the dtype and device of ``cu_seqlens``.

    Raises:
        ValueError, TypeError: ``cu_seqlens`` is not an integer tensor of one dimension.

    Example:
        >>> prepare_lens(torch.tensor([0, 2, 2, 5])).tolist()
        [2, 0, 3]
    """
    check_integers("prepare_lens", "cu_seqlens", cu_seqlens, 1)
    return cu_seqlens[1:] - cu_seqlens[:-1]


def prepare_lens_from_mask(mask: torch.Tensor) -> torch.Tensor:
    """Number of real tokens in each row of a mask.

    Args:
        mask: ``[B, T]``, 0 or False at padding.

    Returns:
        ``[B]`` int32.

    Raises:
        ValueError, TypeError: ``mask`` is not a tensor of two dimensions.

    Example:
        >>> prepare_lens_from_mask(torch.tensor([[0, 1, 1], [0, 0, 1]])).tolist()
        [2, 1]
    """
    check_tensor("prepare_lens_from_mask", "mask", mask)
    if mask.dim() != 2:
        raise value_error("prepare_lens_from_mask", "mask", "must have shape [B, T]", tuple(mask.shape))
    return (mask != 0).sum(-1, dtype=torch.int32)


def prepare_cu_seqlens_from_lens(lens: torch.Tensor, dtype: Optional[torch.dtype] = torch.int32) -> torch.Tensor:
    """Offsets of packed sequences from their lengths.

    Args:
        lens: ``[N]`` integers.
        dtype: of the result.

    Returns:
        ``[N + 1]``, beginning with 0.

    Example:
        >>> prepare_cu_seqlens_from_lens(torch.tensor([2, 0, 3])).tolist()
        [0, 2, 2, 5]
    """
    check_integers("prepare_cu_seqlens_from_lens", "lens", lens, 1)
    return F.pad(lens.cumsum(0, dtype=dtype), (1, 0))


def prepare_cu_seqlens_from_mask(mask: torch.Tensor, dtype: Optional[torch.dtype] = torch.int32) -> torch.Tensor:
    """Offsets of the real tokens of a mask, packed row by row.

    Args:
        mask: ``[B, T]``, 0 or False at padding.
        dtype: of the result.

    Returns:
        ``[B + 1]``, beginning with 0.

    Example:
        >>> prepare_cu_seqlens_from_mask(torch.tensor([[0, 1, 1], [0, 0, 1]])).tolist()
        [0, 2, 3]
    """
    return prepare_cu_seqlens_from_lens(prepare_lens_from_mask(mask), dtype)


_CPU = torch.device("cpu")


def prepare_split_cu_seqlens(
    batch_size: Optional[int] = None,
    seq_len: Optional[int] = None,
    split_size: Optional[int] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
    dtype: Optional[torch.dtype] = torch.int32,
    device: Optional[torch.device] = _CPU,
) -> torch.Tensor:
    """Offsets after every sequence is cut into pieces of at most ``split_size`` tokens.

    Args:
        batch_size, seq_len: number and length of the sequences, if all have the same length.
        split_size: largest number of tokens in a piece.
        cu_seqlens: ``[N + 1]`` integers, for packed sequences; the two sizes are then not used.
        dtype, device: of the result.

    Returns:
        The offsets of the pieces; an empty sequence has no piece.

    Raises:
        TypeError: ``split_size`` is missing, or neither the sizes nor ``cu_seqlens`` are given.

    Example:
        >>> prepare_split_cu_seqlens(2, 5, 2).tolist()
        [0, 2, 4, 5, 7, 9, 10]
    """
    if split_size is None:
        raise TypeError("prepare_split_cu_seqlens: split_size must be given")
    check_size("prepare_split_cu_seqlens", "split_size", split_size, 1)
    if cu_seqlens is None:
        if batch_size is None or seq_len is None:
            raise TypeError("prepare_split_cu_seqlens: give cu_seqlens, or both batch_size and seq_len")
        check_size("prepare_split_cu_seqlens", "batch_size", batch_size)
        check_size("prepare_split_cu_seqlens", "seq_len", seq_len)
        cu_seqlens = torch.arange(batch_size + 1) * seq_len
    piece = prepare_chunk_indices(cu_seqlens, split_size)
    starts = cu_seqlens[:-1][piece[:, 0].long()] + piece[:, 1] * split_size
    return torch.cat([starts, cu_seqlens[-1:]]).to(device=device, dtype=dtype)


def prepare_position_ids(cu_seqlens: torch.Tensor, cu_seqlens_cpu: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Position of each token in its sequence.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        cu_seqlens_cpu: a copy on the CPU.

    Returns:
        ``[T]``, counted from 0, with the dtype and device of ``cu_seqlens``.

    Example:
        >>> prepare_position_ids(torch.tensor([0, 2, 2, 5])).tolist()
        [0, 1, 0, 1, 2]
    """
    return _segments(prepare_lens(_host(cu_seqlens, cu_seqlens_cpu)))[1].to(cu_seqlens)


def prepare_sequence_ids(cu_seqlens: torch.Tensor, cu_seqlens_cpu: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Number of the sequence of each token; empty sequences have numbers too.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        cu_seqlens_cpu: a copy on the CPU.

    Returns:
        ``[T]``, counted from 0, with the dtype and device of ``cu_seqlens``.

    Example:
        >>> prepare_sequence_ids(torch.tensor([0, 2, 2, 5])).tolist()
        [0, 0, 2, 2, 2]
    """
    return _segments(prepare_lens(_host(cu_seqlens, cu_seqlens_cpu)))[0].to(cu_seqlens)


def prepare_token_indices(cu_seqlens: torch.Tensor, cu_seqlens_cpu: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Number of the sequence of each token, and its position in it.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        cu_seqlens_cpu: a copy on the CPU.

    Returns:
        ``[T, 2]``, with the dtype and device of ``cu_seqlens``.

    Example:
        >>> prepare_token_indices(torch.tensor([0, 2, 3])).tolist()
        [[0, 0], [0, 1], [1, 0]]
    """
    return torch.stack(_segments(prepare_lens(_host(cu_seqlens, cu_seqlens_cpu))), 1).to(cu_seqlens)


def prepare_chunk_indices(
    cu_seqlens: torch.Tensor, chunk_size: int, cu_seqlens_cpu: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Number of the sequence of each chunk, and its position in it, if each sequence is cut into chunks.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        chunk_size: tokens of a chunk.
        cu_seqlens_cpu: a copy on the CPU.

    Returns:
        ``[NT, 2]`` for NT chunks, with the dtype and device of ``cu_seqlens``.

    Example:
        >>> prepare_chunk_indices(torch.tensor([0, 2, 2, 5]), 2).tolist()
        [[0, 0], [2, 0], [2, 1]]
    """
    counts = _chunk_counts(_host(cu_seqlens, cu_seqlens_cpu), chunk_size)
    return torch.stack(_segments(counts), 1).to(cu_seqlens)


def prepare_chunk_offsets(cu_seqlens: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Number of the first chunk of each sequence.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        chunk_size: tokens of a chunk.

    Returns:
        ``[N + 1]``; the last element is the number of all chunks.

    Example:
        >>> prepare_chunk_offsets(torch.tensor([0, 2, 2, 5]), 2).tolist()
        [0, 1, 1, 3]
    """
    return F.pad(_chunk_counts(cu_seqlens, chunk_size).cumsum(0), (1, 0))


def get_max_num_splits(
    cu_seqlens: torch.Tensor, chunk_size: int, cu_seqlens_cpu: Optional[torch.Tensor] = None
) -> int:
    """Number of chunks of the longest sequence.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        chunk_size: tokens of a chunk.
        cu_seqlens_cpu: a copy on the CPU.

    Returns:
        The number; 0 without sequences.

    Raises:
        ValueError: ``cu_seqlens`` is on the device meta and has no values.

    Example:
        >>> get_max_num_splits(torch.tensor([0, 2, 2, 5]), 2)
        2
    """
    counts = _chunk_counts(_host(cu_seqlens, cu_seqlens_cpu), chunk_size)
    if counts.is_meta:
        raise value_error("get_max_num_splits", "cu_seqlens", "must have values", "a tensor on meta")
    return int(counts.max()) if counts.numel() else 0


def prepare_chunk_indices_static(
    cu_seqlens: torch.Tensor, chunk_size: int, nt_max: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`prepare_chunk_indices` with a fixed number of rows, without waiting for the device.

    Args:
        cu_seqlens: ``[N + 1]`` integers.
        chunk_size: tokens of a chunk.
        nt_max: number of rows, at least the number of chunks.

    Returns:
        ``[nt_max, 2]``, where rows beyond the last chunk are ``(-1, 0)``, and the chunk offsets ``[N + 1]``.

    Example:
        >>> [t.tolist() for t in prepare_chunk_indices_static(torch.tensor([0, 2, 5]), 2, nt_max=4)]
        [[[0, 0], [1, 0], [1, 1], [-1, 0]], [0, 1, 3]]
    """
    check_size("prepare_chunk_indices_static", "nt_max", nt_max)
    offsets = prepare_chunk_offsets(cu_seqlens, chunk_size)
    slots = torch.arange(nt_max, device=cu_seqlens.device, dtype=offsets.dtype)
    sequence = torch.searchsorted(offsets, slots, right=True) - 1
    used = slots < offsets[-1]
    place = slots - offsets[sequence]
    rows = torch.stack([torch.where(used, sequence, torch.full_like(sequence, -1)), place * used], 1)
    return rows.to(cu_seqlens), offsets.to(cu_seqlens)


def _host(cu_seqlens: torch.Tensor, cu_seqlens_cpu: Optional[torch.Tensor]) -> torch.Tensor:
    return cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu


def _chunk_counts(cu_seqlens: torch.Tensor, chunk_size: int) -> torch.Tensor:
    check_size("prepare_chunk_indices", "chunk_size", chunk_size, 1)
    return torch.div(prepare_lens(cu_seqlens) + (chunk_size - 1), chunk_size, rounding_mode="floor")


def _segments(counts: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """For ``counts [N]``, the number of the segment of each of their sum of slots, and the place in it."""
    counts = counts.long()
    try:
        segment = torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts)
    except (RuntimeError, NotImplementedError) as problem:
        rule = "must be offsets that do not decrease, with values"
        raise value_error("prepare_token_indices", "cu_seqlens", rule, str(problem)) from None
    first = counts.cumsum(0) - counts
    return segment, torch.arange(segment.shape[0], device=counts.device) - first[segment]

"""Arithmetic on packed sequences, against plain Python loops."""

import torch

from myfla.ops.utils import index
from myfla.testing import cases, raises

CUTS = [[0, 1, 3, 20], [0, 0, 5, 5, 6, 7, 7], [0, 4], [0, 0], [0], [0, 3, 3, 3]]


def _tokens(cut):
    return [(n, i) for n, (a, b) in enumerate(zip(cut[:-1], cut[1:])) for i in range(b - a)]


def _chunks(cut, size):
    return [(n, i) for n, (a, b) in enumerate(zip(cut[:-1], cut[1:])) for i in range(-(-(b - a) // size))]


@cases(cut=CUTS, dtype=[torch.int32, torch.int64])
def test_lengths_and_offsets_undo_each_other(cut, dtype):
    offsets = torch.tensor(cut, dtype=dtype)
    lens = index.prepare_lens(offsets)
    assert lens.tolist() == [b - a for a, b in zip(cut[:-1], cut[1:])]
    back = index.prepare_cu_seqlens_from_lens(lens, dtype)
    assert back.tolist() == cut and back.dtype == dtype


@cases(kind=[torch.bool, torch.int64, torch.float32])
def test_mask_gives_lengths_and_offsets(kind):
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]]).to(kind)
    assert index.prepare_lens_from_mask(mask).tolist() == [2, 0, 2, 3]
    offsets = index.prepare_cu_seqlens_from_mask(mask)
    assert offsets.tolist() == [0, 2, 2, 4, 7] and offsets.dtype == torch.int32


@cases(cut=CUTS, dtype=[torch.int32, torch.int64], host=[False, True])
def test_token_numbers_equal_a_loop_and_count_empty_sequences(cut, dtype, host):
    offsets = torch.tensor(cut, dtype=dtype)
    args = (offsets, offsets.clone()) if host else (offsets,)
    want = _tokens(cut)
    got = index.prepare_token_indices(*args)
    assert [tuple(row) for row in got.tolist()] == want and got.dtype == dtype and got.shape == (len(want), 2)
    assert index.prepare_sequence_ids(*args).tolist() == [n for n, _ in want]
    assert index.prepare_position_ids(*args).tolist() == [i for _, i in want]


@cases(cut=CUTS, size=[1, 2, 4, 64])
def test_chunk_numbers_equal_a_loop(cut, size):
    offsets, want = torch.tensor(cut, dtype=torch.int32), _chunks(cut, size)
    assert [tuple(row) for row in index.prepare_chunk_indices(offsets, size).tolist()] == want
    counts = [len(_chunks([0, b - a], size)) for a, b in zip(cut[:-1], cut[1:])]
    assert index.prepare_chunk_offsets(offsets, size).tolist() == [sum(counts[:n]) for n in range(len(cut))]
    assert index.get_max_num_splits(offsets, size) == max(counts, default=0)


@cases(cut=CUTS, size=[2, 4], spare=[0, 3])
def test_static_chunk_numbers_pad_with_a_sentinel(cut, size, spare):
    offsets, want = torch.tensor(cut), _chunks(cut, size)
    rows, starts = index.prepare_chunk_indices_static(offsets, size, len(want) + spare)
    assert [tuple(row) for row in rows.tolist()] == want + [(-1, 0)] * spare
    assert torch.equal(starts, index.prepare_chunk_offsets(offsets, size))


@cases(cut=CUTS, size=[1, 2, 5])
def test_split_offsets_cut_every_sequence(cut, size):
    want = [i for a, b in zip(cut[:-1], cut[1:]) for i in range(a, b, size)] + [cut[-1]]
    got = index.prepare_split_cu_seqlens(split_size=size, cu_seqlens=torch.tensor(cut))
    assert got.tolist() == want and got.dtype == torch.int32


def test_split_offsets_of_a_rectangle():
    assert index.prepare_split_cu_seqlens(2, 5, 2, dtype=torch.int64).tolist() == [0, 2, 4, 5, 7, 9, 10]


def test_offsets_edited_in_place_are_obeyed():
    offsets = torch.tensor([0, 2, 6])
    assert index.prepare_lens(offsets).tolist() == [2, 4]
    offsets[1] = 5
    assert index.prepare_lens(offsets).tolist() == [5, 1]
    assert index.prepare_chunk_indices(offsets, 4).tolist() == [[0, 0], [0, 1], [1, 0]]


def test_split_errors_name_what_is_missing():
    with raises(TypeError, "prepare_split_cu_seqlens: split_size must be given"):
        index.prepare_split_cu_seqlens(2, 5)
    with raises(TypeError, "prepare_split_cu_seqlens: give cu_seqlens, or both batch_size and seq_len"):
        index.prepare_split_cu_seqlens(2, split_size=5)
    with raises(ValueError, "prepare_split_cu_seqlens: split_size must be a whole number from 1", "got 0"):
        index.prepare_split_cu_seqlens(2, 5, 0)

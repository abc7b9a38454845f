"""`check_cu_seqlens`: every rule of packed offsets, and the message that names it."""

import torch

from myfla.testing import cases, raises
from myfla.utils.varlen import check_cu_seqlens


@cases(dtype=[torch.int32, torch.int64])
def test_valid_offsets_give_the_number_of_sequences(dtype):
    assert check_cu_seqlens("who", torch.tensor([0, 2, 2, 5, 5], dtype=dtype), 1, 5) == 4
    assert check_cu_seqlens("who", torch.tensor([0, 0], dtype=dtype), 1, 0) == 1
    assert check_cu_seqlens("who", torch.tensor([0], dtype=dtype), 1, 0) == 0


def test_meta_offsets_pass_without_their_values():
    assert check_cu_seqlens("who", torch.zeros(4, dtype=torch.int64, device="meta"), 1, 7) == 3


def test_offsets_of_another_kind_are_refused():
    with raises(ValueError, "who: cu_seqlens", "must be a tensor", "'list'"):
        check_cu_seqlens("who", [0, 5], 1, 5)
    with raises(ValueError, "who: cu_seqlens", "must be int32 or int64", "float32", "long()"):
        check_cu_seqlens("who", torch.tensor([0.0, 5.0]), 1, 5)
    with raises(ValueError, "who: cu_seqlens", "shape [N+1]", "(1, 2)"):
        check_cu_seqlens("who", torch.tensor([[0, 5]]), 1, 5)
    with raises(ValueError, "who: cu_seqlens", "shape [N+1]", "(0,)"):
        check_cu_seqlens("who", torch.zeros(0, dtype=torch.int64), 1, 0)


def test_unpacked_batch_is_refused():
    with raises(ValueError, "who: cu_seqlens", "[1, total, ...]", "batch size 2"):
        check_cu_seqlens("who", torch.tensor([0, 5]), 2, 5)


def test_wrong_values_are_refused():
    with raises(ValueError, "who: cu_seqlens must start at 0", "got 1"):
        check_cu_seqlens("who", torch.tensor([1, 5]), 1, 5)
    with raises(ValueError, "who: cu_seqlens must not decrease", "2 after 3 at position 2"):
        check_cu_seqlens("who", torch.tensor([0, 3, 2, 5]), 1, 5)
    with raises(ValueError, "who: cu_seqlens must end at the number of tokens, 5", "got 4"):
        check_cu_seqlens("who", torch.tensor([0, 4]), 1, 5)

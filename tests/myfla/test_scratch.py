"""Memory that ops use again or share."""

import pytest
import torch

from myfla.ops.common import scratch
from myfla.ops.common.scratch import together
from myfla.testing import cases

SHAPES = {
    "several": [(2, 3), (5,), (4, 1, 7)],
    "none": [],
    "empty ones": [(0, 3), (2, 2), (0,)],
    "one": [(3, 3)],
}


def storages(tensors):
    return {x.data_ptr() - x.storage_offset() * x.element_size() for x in tensors if x.numel()}


@cases(shapes=list(SHAPES), dtype=[torch.float32, torch.float64])
def test_tensors_in_one_allocation_do_not_overlap(shapes, dtype):
    wanted = SHAPES[shapes]
    found = together(torch.zeros(1, dtype=dtype), wanted)
    assert [tuple(x.shape) for x in found] == wanted and all(x.dtype == dtype and x.is_contiguous() for x in found)
    for number, x in enumerate(found):
        x.fill_(number)
    assert all(bool((x == number).all()) for number, x in enumerate(found))
    assert len(storages(found)) <= 1


@pytest.mark.parametrize("limit, allocations", [(10**6, 1), (4 * 96, 2), (4 * 64, 2), (4 * 48, 4), (1, 4)])
def test_an_allocation_holds_no_more_than_the_limit(monkeypatch, limit, allocations):
    monkeypatch.setattr(scratch, "LARGEST_SHARED", limit)
    found = together(torch.zeros(1), [(4, 8), (32,), (2, 16), (32,)])
    assert len(storages(found)) == allocations

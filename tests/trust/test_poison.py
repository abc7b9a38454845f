"""The tests of the library run on poisoned memory, and would notice if it were read."""

import torch

from myfla.testing import cases


@cases(make=["empty", "empty_like", "new_empty"])
def test_uninitialised_memory_is_nan_here(make):
    given = torch.zeros(3)
    made = {"empty": lambda: torch.empty(2, 3), "empty_like": lambda: torch.empty_like(given),
            "new_empty": lambda: given.new_empty(4)}[make]()
    assert made.isnan().all()
    assert torch.empty(2, dtype=torch.int64).tolist() == [2**63 - 1] * 2
    assert torch.empty(2, device="meta").is_meta

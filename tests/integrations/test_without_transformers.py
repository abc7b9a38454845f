"""What holds where transformers is not installed."""

import sys

import pytest
import torch

import myfla.integrations
from myfla.integrations.transformers import packed_kwargs, use_myfla
from myfla.testing import cases, raises


@pytest.fixture
def not_yet_imported(monkeypatch):
    """As in a new process."""
    for name in ("transformers", "myfla.integrations.hf_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(myfla.integrations, "hf_models", raising=False)


def test_the_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, not_yet_imported):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with raises(ImportError, "transformers is not installed", "pip install 'myfla[hf]'"):
        use_myfla()


def test_an_import_error_inside_transformers_is_not_hidden(monkeypatch, tmp_path, not_yet_imported):
    (tmp_path / "transformers.py").write_text("import a_package_that_transformers_needs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with raises(ImportError, "a_package_that_transformers_needs"):
        use_myfla()


@cases(
    case=[
        ([0, 1, 2, 0, 1], [0, 3, 5], [0, 0, 0, 1, 1], 3),
        ([0], [0, 1], [0], 1),
        ([0, 0, 0], [0, 1, 2, 3], [0, 1, 2], 1),
        ([5, 6, 0, 1], [0, 2, 4], [0, 0, 1, 1], 2),
        ([], [0], [], 0),
    ]
)
def test_packed_kwargs_tell_where_sequences_begin(case):
    positions, offsets, numbers, longest = case
    told = packed_kwargs(torch.tensor([positions], dtype=torch.long))
    assert told["position_ids"].tolist() == [positions]
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == offsets
    assert told["cu_seq_lens_q"].dtype == told["seq_idx"].dtype == torch.int32
    assert told["seq_idx"].tolist() == [numbers]
    assert told["max_length_q"] == told["max_length_k"] == longest
    assert told["use_cache"] is False


@cases(shape=[(4,), (2, 4), (3, 1, 4)])
def test_packed_kwargs_want_one_row(shape):
    with raises(ValueError, "packed_kwargs: position_ids must be integers [1, T]", str(shape), "pack into one row"):
        packed_kwargs(torch.zeros(shape, dtype=torch.long))


def test_packed_kwargs_want_integers():
    with raises(ValueError, "packed_kwargs: position_ids must be integers", "float32"):
        packed_kwargs(torch.zeros(1, 4))

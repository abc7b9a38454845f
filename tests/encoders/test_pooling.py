"""Pooling: each sequence on its own, however the batch is laid out."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abilities import skip_without_products
from encoders.batch import make_layout
from encoders.pooling import POOLINGS, build_pooling
from myfla.testing import assert_close, cases, raises


def by_hand(name, pool, tokens):
    """The pooling of one sequence ``[T, D]``, as its definition says."""
    if len(tokens) == 0:
        return tokens.new_zeros(tokens.shape[1])
    if name == "mean":
        return sum(tokens) / len(tokens)
    if name == "last":
        return tokens[-1]
    if name == "max":
        return torch.stack([max(column) for column in tokens.unbind(1)])
    scores = torch.stack([pool.query(torch.tanh(pool.key(token)))[0] for token in tokens])
    weights = scores.exp() / scores.exp().sum()
    return sum(weight * token for weight, token in zip(weights, tokens))


def awake(name, hidden_size, dtype=torch.float64):
    """A pooling whose parameters are not at their start (a fresh attention pool is a mean)."""
    pool = build_pooling(name, hidden_size, dtype=dtype)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    return pool


@cases(name=POOLINGS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_pooling_is_its_definition_sequence_by_sequence(name, lengths, seed):
    torch.manual_seed(seed)
    pool, time = awake(name, 3), max(lengths)
    x = torch.randn(len(lengths), time, 3, dtype=torch.float64)
    layout = make_layout(x, lengths=lengths)
    want = torch.stack([by_hand(name, pool, row[:n]) for row, n in zip(x, lengths)])
    assert_close(pool(layout.pack(x), layout), want, rms=1e-12)
    packed = torch.cat([row[:n] for row, n in zip(x, lengths)])[None]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    assert_close(pool(packed, make_layout(packed, cu_seqlens=offsets)), want, rms=1e-12)


@cases(name=POOLINGS)
def test_a_dense_batch_pools_like_a_packed_one(name):
    pool, x = awake(name, 4), torch.randn(3, 5, 4, dtype=torch.float64)
    packed = x.view(1, 15, 4)
    layout = make_layout(packed, cu_seqlens=torch.tensor([0, 5, 10, 15]))
    assert_close(pool(x, make_layout(x)), pool(packed, layout), rms=1e-12)


@cases(name=POOLINGS, shape=[(0, 3, 2), (2, 0, 2), (0, 0, 2)])
def test_nothing_to_pool_gives_zeros(name, shape):
    x = torch.zeros(shape, dtype=torch.float64)
    got = awake(name, 2)(x, make_layout(x))
    assert got.shape == (shape[0], 2) and not got.any()


@cases(name=POOLINGS, packed=[True, False])
def test_gradients_are_those_of_the_definition(name, packed):
    pool = awake(name, 3)
    x = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 4, 4, 6]) if packed else None
    layout = make_layout(x, cu_seqlens=offsets)
    assert torch.autograd.gradcheck(lambda value: pool(value, layout), (x,))


@cases(name=POOLINGS, dtype=[torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_embedding_has_the_dtype_of_the_hidden_states(name, dtype):
    if name == "attention":
        skip_without_products(dtype)
    x = torch.randn(2, 3, 4).to(dtype)
    layout = make_layout(x, lengths=[3, 2])
    assert awake(name, 4, dtype)(layout.pack(x), layout).dtype == dtype


@cases(name=["mean", "attention"], packed=[True, False])
def test_means_of_bfloat16_are_summed_in_float32(name, packed):
    x = torch.ones(1, 257, 1, dtype=torch.bfloat16)
    x[0, 5] = 3
    layout = make_layout(x, cu_seqlens=torch.tensor([0, 257]) if packed else None)
    # bfloat16 has neither 257 nor 259: there the mean would be 260 / 256.
    assert build_pooling(name, 1, dtype=torch.bfloat16)(x, layout).item() == torch.tensor(259 / 257).bfloat16().item()


@cases(name=POOLINGS)
def test_one_sequence_of_nan_spoils_no_other(name):
    pool, x = awake(name, 2), torch.randn(2, 3, 2, dtype=torch.float64)
    layout = make_layout(x, lengths=[3, 2])
    clean = pool(layout.pack(x), layout)
    x[1] = float("nan")
    dirty = pool(layout.pack(x), layout)
    assert torch.equal(dirty[0], clean[0]) and dirty[1].isnan().all()


def test_a_fresh_attention_pool_is_a_mean():
    x = torch.randn(2, 3, 4)
    layout = make_layout(x, lengths=[3, 1])
    packed = layout.pack(x)
    assert_close(build_pooling("attention", 4)(packed, layout), build_pooling("mean", 4)(packed, layout), rms=1e-6)


def test_large_scores_stay_finite():
    pool = awake("attention", 2)
    torch.nn.init.constant_(pool.query.weight, 1e4)
    x = torch.randn(1, 4, 2, dtype=torch.float64)
    offsets = torch.tensor([0, 1, 4])
    assert torch.isfinite(pool(x, make_layout(x, cu_seqlens=offsets))).all()


def test_an_unknown_pooling_is_refused():
    with raises(ValueError, "build_pooling: name must be one of mean, last, max, attention; got 'median'"):
        build_pooling("median", 4)

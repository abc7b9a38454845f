"""`token_shift`: every layout against the reference, the cache, gradients, messages."""

import torch

from myfla.modules.token_shift import TokenShift, token_shift, token_shift_ref
from myfla.testing import assert_close, cases, raises

CU = [0, 0, 1, 2, 7, 7, 12]


@cases(tokens=[0, 1, 2, 9], cached=[False, True], dtype=[torch.float64, torch.bfloat16])
def test_dense_rows_equal_the_definition(tokens, cached, dtype):
    x, cache = torch.randn(3, tokens, 5).to(dtype), torch.randn(3, 5).to(dtype)
    delta, last = token_shift(x, cache=cache if cached else None, output_cache=True)
    before = cache if cached else torch.zeros_like(cache)
    assert torch.equal(delta, torch.cat([before[:, None], x], dim=1)[:, :-1] - x)
    assert torch.equal(last, x[:, -1] if tokens else before)
    assert delta.dtype == last.dtype == dtype
    if not cached:
        assert torch.equal(delta, token_shift_ref(x)) and torch.equal(delta, token_shift(x))


@cases(cu=[CU, [0], [0, 0], [0, 1, 2, 3], [0, 6]], cached=[False, True])
def test_packed_sequences_equal_one_by_one(cu, cached):
    rows = len(cu) - 1
    x, cache = torch.randn(1, cu[-1], 4), torch.randn(rows, 4)
    delta, last = token_shift(x, torch.tensor(cu), cache if cached else None, output_cache=True)
    for n, (i, j) in enumerate(zip(cu[:-1], cu[1:])):
        want, end = token_shift(x[:, i:j], cache=cache[n : n + 1] if cached else None, output_cache=True)
        assert torch.equal(delta[:, i:j], want) and torch.equal(last[n], end[0])
    if not cached:
        assert torch.equal(delta, token_shift_ref(x, torch.tensor(cu)))


@cases(cuts=[[0], [1], [3, 3, 4], list(range(1, 9))])
def test_any_split_equals_the_whole(cuts):
    x = torch.randn(2, 9, 3)
    pieces, cache, bounds = [], None, [0, *cuts, 9]
    for i, j in zip(bounds[:-1], bounds[1:]):
        piece, cache = token_shift(x[:, i:j], cache=cache, output_cache=True)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces, dim=1), token_shift(x))
    assert torch.equal(cache, x[:, -1])


@cases(cu=[None, CU], cached=[False, True], tokens=[1, 12])
def test_shift_gradients_equal_finite_differences(cu, cached, tokens):
    rows = 2 if cu is None else len(cu) - 1
    shape = (2, tokens, 3) if cu is None else (1, cu[-1], 3)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    cache = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    offsets = None if cu is None else torch.tensor(cu)
    inputs = (x, cache) if cached else (x,)
    assert torch.autograd.gradcheck(lambda x, c=None: token_shift(x, offsets, c, output_cache=True), inputs)
    assert torch.autograd.gradcheck(lambda x, c=None: token_shift(x, offsets, c), inputs)


def test_the_cache_is_a_value():
    """What goes in is not written, what comes out is nobody else's."""
    x, cache = torch.randn(2, 3, 4), torch.randn(2, 4)
    copies = x.clone(), cache.clone()
    _, last = token_shift(x, cache=cache, output_cache=True)
    last.zero_()
    _, empty = token_shift(x[:, :0], cache=cache, output_cache=True)
    empty.zero_()
    _, packed = token_shift(x[:1], torch.tensor([0, 3, 3]), cache, output_cache=True)
    packed.zero_()
    assert torch.equal(x, copies[0]) and torch.equal(cache, copies[1])


def test_offsets_edited_in_place_are_obeyed():
    x, cu = torch.randn(1, 6, 2), torch.tensor([0, 2, 6])
    token_shift(x, cu)
    cu[1] = 4
    assert torch.equal(token_shift(x, cu), token_shift_ref(x, torch.tensor([0, 4, 6])))


def test_strided_input_and_official_name():
    x = torch.randn(2, 4, 6).transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(token_shift(x), token_shift_ref(x))
    delta, last = TokenShift.apply(x, None, None, True)
    assert torch.equal(delta, token_shift(x)) and torch.equal(last, x[:, -1])
    assert_close(token_shift(x, chunk_indices=torch.zeros(1, 2)), delta, rms=0)


def test_wrong_shapes_are_refused_by_name():
    x = torch.randn(2, 4, 6)
    with raises(ValueError, "token_shift: x must have shape [B, T, D]", "(4, 6)"):
        token_shift(x[0])
    with raises(ValueError, "token_shift: cache must have shape [N, D] = (2, 6)", "(2, 1, 6)"):
        token_shift(x, cache=torch.randn(2, 1, 6))
    with raises(ValueError, "token_shift: cu_seqlens", "batch size 2"):
        token_shift(x, torch.tensor([0, 4]))
    with raises(ValueError, "token_shift: cu_seqlens must end at the number of tokens, 4", "5"):
        token_shift(x[:1], torch.tensor([0, 5]))
    with raises(ValueError, "token_shift: cache must have shape [N, D] = (3, 6)"):
        token_shift(x[:1], torch.tensor([0, 1, 1, 4]), cache=torch.randn(2, 6))

"""The parts of the form for matrix units: layouts, products, the inverse, the split of a chunk."""

import numpy as np
import pytest
import torch

from myfla.ops._delta.bf16.gated_delta import decay_mask
from myfla.ops._delta.bf16.inverse import invert_unit_lower
from myfla.ops._delta.bf16.layout import count_parts, dense_layout, packed_layout
from myfla.ops._delta.bf16.products import accumulate, product, scale_into
from myfla.ops._delta.subchunks import RANGE, choose_subchunks
from myfla.testing import assert_close, cases

BOUND = -0.607
CPU = torch.device("cpu")


def layouts():
    for batch, tokens in ((2, 37), (1, 64), (3, 130)):
        for parts in (1, 2, 3):
            yield dense_layout(batch, tokens, 2, CPU, 16, parts), [tokens] * batch
    for lengths in ([5], [0, 1, 69, 64, 0, 130], [16, 32, 16]):
        for parts in (1, 2, 5):
            cu = torch.tensor([0, *lengths]).cumsum(0)
            yield packed_layout(cu, 2, CPU, 16, parts), lengths


def test_every_token_stands_in_one_place_and_chunks_follow_each_other():
    for layout, lengths in layouts():
        token, filled, place = layout.places
        filled = torch.ones_like(token, dtype=torch.bool) if filled is None else filled
        assert token[filled].sort().values.tolist() == list(range(sum(lengths))) and filled.sum() == sum(lengths)
        assert torch.equal(token.flatten()[place], torch.arange(sum(lengths)))
        assert all(a >= b for a, b in zip(layout.steps, layout.steps[1:])) and len(token) == sum(layout.steps)
        rows = [[] for _ in range(layout.rows)]
        start = 0
        for count in layout.steps:
            for row in range(count):
                rows[row] += token[start + row][filled[start + row]].tolist()
            start += count
        sequences = [list(part) for part in torch.arange(sum(lengths)).split(lengths)]
        if layout.parts:
            found = [[] for _ in lengths]
            for numbers, those in layout.parts:
                for n, row in zip(range(len(lengths)) if isinstance(numbers, slice) else numbers.tolist(),
                                  torch.arange(layout.rows)[those].tolist()):  # fmt: skip
                    found[n] += rows[row]
        else:
            numbers = range(len(lengths)) if layout.sequence is None else layout.sequence.tolist()
            found = [[] for _ in lengths]
            for n, row in zip(numbers, rows):
                found[n] = row
        assert found == [[int(t) for t in s] for s in sequences]


@cases(heads=[2, 4], dtype=[torch.bfloat16, torch.float32], size=[3, 8])
def test_what_is_loaded_is_stored_back(heads, dtype, size):
    for layout, lengths in layouts():
        x = torch.randn(sum(lengths), 2, size).to(dtype)
        back = layout.places.store(layout.places.load(x, heads), x)
        assert torch.equal(back, x * (heads // 2))


def test_long_sequences_of_few_heads_are_scanned_in_parts():
    assert [count_parts(*x) for x in ((128, 32), (16, 64), (16, 256), (1, 3))] == [1, 4, 8, 1]
    layout = dense_layout(1, 4097, 16, CPU)
    assert sum(layout.steps) * layout.chunk >= 4097 and layout.rows == 4
    packed = packed_layout(torch.tensor([0, 16384, 16400]), 4, CPU)
    assert packed.rows > 2 and len(packed.steps) < 256 / 4


def test_decays_of_pairs_are_differences_for_every_gate():
    g = -torch.tensor([0.0, 1e-3, 0.5, 40.0, 900.0]).double()[torch.randint(5, (3, 64))]
    c = g.cumsum(1)
    want = (c.unsqueeze(2) - c.unsqueeze(1)).tril().exp().tril()
    assert_close(decay_mask(c.unsqueeze(-1), torch.float64), want, 1e-13)
    assert torch.isfinite(decay_mask(c.unsqueeze(-1), torch.float32)).all()


def exact_inverse(lower):
    """``(I + lower)^-1`` by substitution in numpy's longest numbers: LU in float64 errs by more than what it judges."""
    below, out = lower.numpy().astype(np.longdouble), np.zeros(lower.shape, np.longdouble)
    for i, row in enumerate(np.eye(lower.shape[-1])):
        out[:, i] = row - np.einsum("bj,bjk->bk", below[:, i, :i], out[:, :i])
    return torch.from_numpy(out.astype(np.float64))


@cases(size=[16, 32, 64], dtype=[torch.float32, torch.float64])
def test_the_inverse_holds_where_keys_are_alike(size, dtype):
    keys = torch.nn.functional.normalize(torch.randn(5, 1, 8) + 0.1 * torch.randn(5, size, 8), dim=-1).to(dtype)
    lower = 2 * keys @ keys.transpose(1, 2)
    want = exact_inverse(lower.double().tril(-1))
    assert_close(invert_unit_lower(lower), want, 1e-5 if dtype == torch.float32 else 3e-14)


def test_products_add_up_in_float32_and_round_once():
    a, b = torch.randn(2, 8, 300).bfloat16(), torch.randn(2, 300, 8).bfloat16()
    exact = a.double() @ b.double()
    assert_close(product(a, b, torch.float32, alpha=0.5), exact / 2, 1e-6)
    assert torch.equal(product(a, b), product(a, b, torch.float32).bfloat16())
    assert_close(accumulate(torch.ones(2, 8, 8), a, b, alpha=-1), 1 - exact, 1e-6)
    out = torch.zeros(2, 8, 16)[:, :, ::2].transpose(1, 2)
    assert product(a, b, out=out) is out
    assert_close(out, exact, 1e-6)
    factor = torch.tensor(1.2345)
    assert torch.equal(scale_into(torch.empty_like(a), a, factor), (a.float() * factor).bfloat16())


@cases(chunk=[16, 32, 64], bound=[None, BOUND, -5.0, -1000.0], dtype=[torch.float32, torch.float64])
def test_every_pair_of_tokens_meets_once_within_range(chunk, bound, dtype):
    split = choose_subchunks(chunk, dtype, bound)
    grid = torch.zeros(1, 2, chunk, 2, chunk)
    for pair in split.pairs():
        pair.squares(grid).add_(1)
        assert pair.squares(grid).shape[1] == pair.places(chunk)
    assert torch.equal(grid[0, 1, :, 0].tril(), torch.ones(chunk, chunk).tril())
    c = torch.full((1, chunk, 1), split.floor(dtype), dtype=dtype).cumsum(1)
    from_start = torch.stack((c, torch.nn.functional.pad(c[:, :-1], (0, 0, 1, 0))), dim=1)
    for i, pair in enumerate(split.pairs()):
        to, since = pair.decays(c, from_start)
        most = RANGE[dtype] if i == 0 else 0
        assert max(to.max().item(), since.max().item()) <= torch.tensor(most, dtype=dtype).exp() * (1 + 1e-5)
        assert i or min(to.min().item(), since.min().item()) >= torch.tensor(-most, dtype=dtype).exp() * (1 - 1e-5)


def test_blocks_grow_to_what_a_bound_allows():
    blocks = {bound: choose_subchunks(64, torch.float32, bound).block for bound in (None, BOUND, -2.0, -5.0, -20.0)}
    assert blocks == {None: 8, BOUND: 64, -2.0: 64, -5.0: 16, -20.0: 8}
    for bound in (BOUND, -2.0, -5.0):
        assert choose_subchunks(64, torch.float32, bound).floor(torch.float32) <= bound


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_layouts_of_nothing_have_no_waves(shape):
    layout = packed_layout(torch.zeros(3, dtype=torch.int64), 2, CPU)
    assert layout.steps == () and layout.rows == 0 and layout.places.token.shape[0] == 0

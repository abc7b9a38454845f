"""Rotary positions: each pair of channels turns as the formula says, from any place on, packed or not."""

import cmath

import torch

from myfla.modules import RotaryEmbedding
from myfla.modules.rotary import rotary_embedding, rotate_by_position
from myfla.testing import assert_close, cases, raises

WHO = "RotaryEmbedding: "


def turned(x, place, dim, base, interleaved, scale=None, power=0.0):
    """One head's channels, pair by pair, as complex numbers."""
    y = x.double().clone()
    for i in range(dim // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2)
        grow = 1.0 if scale is None else ((2 * i + 0.4 * dim) / (1.4 * dim)) ** power
        pair = complex(x[a], x[b]) * cmath.exp(1j * place * base ** (-2 * i / dim)) * grow
        y[a], y[b] = pair.real, pair.imag
    return y


FORMATS = [torch.float32, torch.float64]


@cases(interleaved=[False, True], scale_base=[None, 64.0], dim=[8, 6], offset=[0, 5], dtype=FORMATS)
def test_every_pair_turns_by_its_angle(interleaved, scale_base, dim, offset, dtype):
    module = RotaryEmbedding(dim, base=100.0, scale_base=scale_base, interleaved=interleaved)
    q, k = torch.randn(2, 7, 3, 8, dtype=dtype), torch.randn(2, 7, 1, 8, dtype=dtype)
    for x, y, sign in zip((q, k), module(q, k, seqlen_offset=offset), (1, -1)):
        assert y.dtype == dtype
        for t in range(7):
            power = 0.0 if scale_base is None else sign * (t + offset - (7 + offset) // 2) / scale_base
            want = torch.stack([torch.stack([turned(head, t + offset, dim, 100.0, interleaved, scale_base, power)
                                             for head in row[t]]) for row in x])
            assert_close(y[:, t].double(), want, rms=1e-6 if dtype == torch.float32 else 1e-14)


def test_packed_sequences_begin_anew_and_each_may_have_its_own_place():
    module, cu = RotaryEmbedding(8), torch.tensor([0, 3, 3, 8])
    q, k = torch.randn(1, 8, 2, 8), torch.randn(1, 8, 2, 8)
    for offset in (0, 4, torch.tensor([5, 0, 2])):
        got = module(q, k, seqlen_offset=offset, cu_seqlens=cu)
        for n, (start, end) in enumerate([(0, 3), (3, 3), (3, 8)]):
            first = int(offset[n]) if isinstance(offset, torch.Tensor) else offset
            want = module(q[:, start:end], k[:, start:end], seqlen_offset=first)
            assert all(torch.equal(a[:, start:end], b) for a, b in zip(got, want))


def test_what_stands_before_the_first_place_is_zero():
    module, q = RotaryEmbedding(4), torch.randn(2, 5, 1, 4)
    got = module(q, q, seqlen_offset=torch.tensor([-2, 0]))[0]
    assert not got[0, :2].any() and torch.equal(got[0, 2:], module(q[:, 2:], q[:, 2:])[0][0])
    assert torch.equal(got[1], module(q, q)[0][1])


@cases(interleaved=[False, True])
def test_tables_give_what_the_module_gives(interleaved):
    x, angles = torch.randn(2, 6, 2, 8), torch.outer(torch.arange(20.0), 10000.0 ** (-torch.arange(4) / 4.0))
    module = RotaryEmbedding(8, interleaved=interleaved)
    for offset in (0, 3, torch.tensor([1, 9])):
        want = module(x, x, seqlen_offset=offset)[0]
        got = rotary_embedding(x, angles.cos(), angles.sin(), interleaved, seqlen_offsets=offset)
        assert_close(got, want, rms=1e-6)
    mine = x.clone()
    assert rotary_embedding(mine, angles.cos(), angles.sin(), interleaved, inplace=True) is mine
    assert_close(mine, module(x, x)[0], rms=1e-6)
    if not interleaved:
        assert_close(rotate_by_position(x, torch.arange(6)), module(x, x)[0], rms=1e-6)


def test_far_places_are_exact_and_gradients_flow():
    module, x = RotaryEmbedding(8), torch.randn(1, 1, 1, 8, dtype=torch.float64, requires_grad=True)
    far = module(x.float(), x.float(), seqlen_offset=10**6)[0]
    assert_close(far.double().detach(), module(x, x, seqlen_offset=10**6)[0].detach(), rms=1e-6)
    assert torch.autograd.gradcheck(lambda x: module(x, x, seqlen_offset=3), (x,))


def test_errors_name_what_is_wrong():
    x = torch.zeros(1, 3, 1, 4)
    with raises(ValueError, WHO + "dim must be an even number from 2", "3"):
        RotaryEmbedding(3)
    with raises(ValueError, WHO + "seqlen_offset must be a number or integers [1]"):
        RotaryEmbedding(4)(x, x, seqlen_offset=torch.zeros(2, dtype=torch.long))
    with raises(ValueError, "rotary_embedding: cos must have a row for place 2", "2 rows"):
        rotary_embedding(x, torch.ones(2, 2), torch.ones(2, 2))
    with raises(ValueError, "rotary_embedding: cos must be a table [places, R / 2] with R from 2 up to D=4"):
        rotary_embedding(x, torch.ones(2, 3), torch.ones(2, 3))

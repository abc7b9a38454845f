"""Layouts: which positions are tokens, given in any form."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.batch import make_layout
from myfla.testing import cases, raises

masks = st.integers(0, 4).flatmap(
    lambda batch: st.integers(0, 5).flatmap(
        lambda time: st.lists(st.booleans(), min_size=batch * time, max_size=batch * time).map(
            lambda bits: torch.tensor(bits, dtype=torch.bool).view(batch, time)
        )
    )
)


def numbered(mask):
    """``[B, T, 1]`` data with a number of its own at every position."""
    return torch.arange(mask.numel(), dtype=torch.float64).view(*mask.shape, 1)


@settings(max_examples=100, deadline=None)
@given(mask=masks)
def test_packing_keeps_the_tokens_in_order_and_unpacking_puts_zeros_at_pads(mask):
    x = numbered(mask)
    layout = make_layout(x, attention_mask=mask)
    packed = layout.pack(x)
    assert packed.reshape(-1).tolist() == x[mask].reshape(-1).tolist()
    back = layout.unpack(packed)
    assert torch.equal(back, torch.where(mask[..., None], x, torch.zeros_like(x)))
    assert layout.lengths.tolist() == mask.sum(1).tolist()
    assert layout.segments().tolist() == [b for b, row in enumerate(mask.tolist()) for real in row if real]


@settings(max_examples=100, deadline=None)
@given(mask=masks)
def test_reversal_turns_each_row_and_sees_no_pad(mask):
    x = numbered(mask)
    layout = make_layout(x, attention_mask=mask)
    turn = layout.reverser()
    packed = layout.pack(x)
    turned = turn(packed).reshape(-1).tolist()
    want = [value for row, real in zip(x[..., 0], mask) for value in reversed(row[real].tolist())]
    assert turned == want
    assert torch.equal(turn(turn(packed)), packed)


def test_lengths_are_a_mask_with_the_pads_behind():
    x = torch.randn(4, 3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    want = make_layout(x, attention_mask=mask)
    counts = [3, 1, 0, 2]
    for lengths in (counts, tuple(counts), torch.tensor(counts), torch.tensor(counts, dtype=torch.uint8)):
        got = make_layout(x, lengths=lengths)
        assert all(torch.equal(getattr(got, f), getattr(want, f)) for f in ("lengths", "cu_seqlens", "tokens"))


@cases(kind=[torch.bool, torch.uint8, torch.int64, torch.float32, torch.float16])
def test_a_mask_of_any_number_format_means_the_same(kind):
    x, mask = torch.randn(2, 3, 1), torch.tensor([[0, 1, 1], [1, 1, 0]])
    layout = make_layout(x, attention_mask=mask.to(kind))
    assert layout.cu_seqlens.tolist() == [0, 2, 4] and layout.tokens.tolist() == [1, 2, 3, 4]


def test_a_batch_without_pads_is_left_alone():
    x = torch.randn(2, 3, 1)
    for layout in (make_layout(x), make_layout(x, lengths=[3, 3]), make_layout(x, attention_mask=torch.ones(2, 3))):
        assert layout.cu_seqlens is None and layout.pack(x) is x and layout.unpack(x) is x
        assert torch.equal(layout.reverser()(x), x.flip(1))


@cases(kind=[torch.int32, torch.int64])
def test_packed_data_is_taken_as_it_is(kind):
    x = torch.randn(1, 5, 2)
    layout = make_layout(x, cu_seqlens=torch.tensor([0, 2, 2, 5], dtype=kind))
    assert layout.pack(x) is x and layout.unpack(x) is x and layout.lengths.tolist() == [2, 0, 3]
    assert layout.reverser()(x)[0].tolist() == x[0, [1, 0, 4, 3, 2]].tolist()


def test_a_mask_changed_in_place_is_obeyed():
    x, mask = torch.randn(1, 3, 1), torch.tensor([[1, 1, 0]])
    assert make_layout(x, attention_mask=mask).tokens.tolist() == [0, 1]
    mask[0, 0], mask[0, 2] = 0, 1
    assert make_layout(x, attention_mask=mask).tokens.tolist() == [1, 2]


X = torch.zeros(2, 3, 1)
BAD = {
    "two": (dict(lengths=[1, 1], attention_mask=torch.ones(2, 3)),
            "encoder: attention_mask must not be given together with lengths; got 'lengths, attention_mask'; give one"),
    "mask and packed": (dict(attention_mask=torch.ones(2, 3), cu_seqlens=torch.tensor([0, 3])),
                        "encoder: cu_seqlens must not be given together with attention_mask"),
    "lengths count": (dict(lengths=[1, 1, 1]), "lengths must be 2 integers, one per row of x; got 'shape (3,)'"),
    "lengths rank": (dict(lengths=torch.ones(2, 1).long()), "one per row of x; got 'shape (2, 1)'"),
    "lengths float": (dict(lengths=torch.ones(2)), "got torch.float32; use lengths.long()"),
    "lengths bool": (dict(lengths=torch.ones(2).bool()), "got torch.bool; use lengths.long()"),
    "lengths words": (dict(lengths=["1", "2"]), "got ['1', '2']; use a list of int or a tensor [B]"),
    "lengths number": (dict(lengths=3), "encoder: lengths must be 2 integers, one per row of x; got 3"),
    "lengths negative": (dict(lengths=[2, -1]), "encoder: lengths must be from 0 to T=3; got '-1 in row 1'"),
    "lengths long": (dict(lengths=[2, 4]), "encoder: lengths must be from 0 to T=3; got '4 in row 1'"),
    "mask list": (dict(attention_mask=[[1, 1, 1]] * 2),
                  "encoder: attention_mask must be a tensor [B, T] of 0 and 1; got 'list'"),
    "mask shape": (dict(attention_mask=torch.ones(2, 4)),
                   "encoder: attention_mask must have shape [B, T] = [2, 3]; got [2, 4]"),
    "mask rank": (dict(attention_mask=torch.ones(2, 3, 1)), "must have shape [B, T] = [2, 3]; got [2, 3, 1]"),
    "mask values": (dict(attention_mask=torch.tensor([[1, 1, 1], [1, 0.5, 0]])),
                    "encoder: attention_mask must hold only 0 and 1; got '0.5 at [1, 1]'"),
    "mask nan": (dict(attention_mask=torch.tensor([[1, 1, float("nan")], [1, 1, 0]])), "got 'nan at [0, 2]'"),
    "packed batch": (dict(cu_seqlens=torch.tensor([0, 3])),
                     "encoder: cu_seqlens needs data packed as [1, total, ...]; got 'batch size 2'"),
}
PACKED = {
    "start": ([1, 5], "encoder: cu_seqlens must start at 0; got 1"),
    "decrease": ([0, 3, 2, 5], "encoder: cu_seqlens must not decrease; got '2 after 3 at position 2'"),
    "end": ([0, 4], "encoder: cu_seqlens must end at the number of tokens, 5; got 4"),
    "float": ([0.0, 5.0], "encoder: cu_seqlens must be int32 or int64; got torch.float32"),
    "rank": ([[0, 5]], "encoder: cu_seqlens must have shape [N+1]; got (1, 2)"),
}


@cases(what=list(BAD))
def test_a_layout_that_does_not_fit_is_refused(what):
    arguments, message = BAD[what]
    with raises(ValueError, message):
        make_layout(X, **arguments)


@cases(what=list(PACKED))
def test_offsets_that_do_not_fit_are_refused(what):
    offsets, message = PACKED[what]
    with raises(ValueError, message):
        make_layout(torch.zeros(1, 5, 1), cu_seqlens=torch.tensor(offsets))

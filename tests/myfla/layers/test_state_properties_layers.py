"""What the state of a layer promises, in both families, for splits, pads, packings and sessions that nobody chose."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import state_properties as properties
from myfla.testing import cases
from state_subjects import LAYERS

MADE = {(name, dtype): make(dtype) for name, make in LAYERS.items() for dtype in (torch.float32, torch.float64)}
PRECISIONS = [torch.float32, torch.float64]
quick = settings(max_examples=6, deadline=None, derandomize=True)


def masks(batch, lengths):
    """One bool mask ``[batch, n]`` for each n."""
    rows = [st.lists(st.booleans(), min_size=batch * n, max_size=batch * n) for n in lengths]
    return st.tuples(*rows).map(lambda bits: [torch.tensor(b, dtype=torch.bool).view(batch, n)
                                              for b, n in zip(bits, lengths)])


@cases(name=list(LAYERS), dtype=PRECISIONS)
@quick
@given(pieces=properties.sizes, grad=st.booleans())
def test_any_split_equals_the_whole(name, dtype, pieces, grad):
    properties.any_split(MADE[name, dtype], pieces, grad)


@cases(name=list(LAYERS), before=[0, 1, 70], following=[1, 3, 66])
def test_the_next_token_alone_is_the_first_of_a_longer_call(name, before, following):
    properties.next_token(MADE[name, torch.float64], before, following)


@cases(name=list(LAYERS))
@quick
@given(data=st.data(), junk=st.sampled_from(properties.JUNK))
def test_padding_is_invisible_on_continued_calls(name, data, junk):
    batch, lengths = data.draw(st.integers(1, 3)), data.draw(properties.few)
    properties.padding_on_continued_calls(MADE[name, torch.float64], data.draw(masks(batch, lengths)), junk)


@cases(name=list(LAYERS))
@quick
@given(data=st.data())
def test_packed_equals_padded_equals_one_by_one(name, data):
    count = data.draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 5), min_size=count, max_size=count)
    properties.packed_and_padded(MADE[name, torch.float64], data.draw(st.lists(row, min_size=1, max_size=3)))


@cases(name=list(LAYERS))
@quick
@given(schedule=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=8))
def test_sessions_do_not_see_each_other(name, schedule):
    properties.sessions_are_isolated(MADE[name, torch.float32], schedule)


@cases(name=list(LAYERS))
@quick
@given(tokens=st.integers(1, 70), data=st.data())
def test_the_future_changes_nothing_before_it(name, tokens, data):
    properties.causality(MADE[name, torch.float32], tokens, data.draw(st.integers(0, tokens - 1)))


@cases(name=list(LAYERS))
@quick
@given(order=st.permutations(range(4)), pieces=properties.few)
def test_permuting_the_batch_permutes_the_result(name, order, pieces):
    properties.permutation(MADE[name, torch.float32], order, pieces)


@cases(name=list(LAYERS))
def test_layouts_edited_in_place_are_obeyed(name):
    properties.layouts_edited_in_place(MADE[name, torch.float64])

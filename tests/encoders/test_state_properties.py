"""What the state of a whole encoder promises, for splits, pads, packings and sessions that nobody chose.

The same properties as those of single layers (`test_state_properties_layers`), and what the cache's own operations mean
for an encoder: picking rows, forks, files, sessions that join and part.
"""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import state_properties as properties
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases
from state_subjects import ENCODERS, STRATEGIES, states

EVERY = {**ENCODERS, **STRATEGIES}
MADE = {(name, dtype): make(dtype) for name, make in EVERY.items() for dtype in (torch.float32, torch.float64)}
NAMES, PRECISIONS = list(ENCODERS), [torch.float32, torch.float64]
quick = settings(max_examples=8, deadline=None, derandomize=True)
many = settings(max_examples=150, deadline=None)


def masks(batch, lengths):
    rows = [st.lists(st.booleans(), min_size=batch * n, max_size=batch * n) for n in lengths]
    return st.tuples(*rows).map(lambda bits: [torch.tensor(b, dtype=torch.bool).view(batch, n)
                                              for b, n in zip(bits, lengths)])


def draw_masks(data):
    batch, lengths = data.draw(st.integers(1, 4)), data.draw(properties.few)
    return data.draw(masks(batch, lengths))


def draw_rounds(data):
    count = data.draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 6), min_size=count, max_size=count)
    return data.draw(st.lists(row, min_size=1, max_size=3))


schedules = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=8)


def at_length(pieces, dtype):
    """In float32, a mean over enough tokens: the norms multiply the rounding of single ones without a bound."""
    return pieces if dtype == torch.float64 else [*pieces, 200]


@cases(name=NAMES, dtype=PRECISIONS)
@quick
@given(pieces=properties.sizes, grad=st.booleans())
def test_any_split_equals_the_whole(name, dtype, pieces, grad):
    properties.any_split(MADE[name, dtype], at_length(pieces, dtype), grad)


@cases(name=NAMES, before=[0, 1, 70], following=[1, 3, 66])
def test_the_next_token_alone_is_the_first_of_a_longer_call(name, before, following):
    properties.next_token(MADE[name, torch.float64], before, following)


@cases(name=NAMES)
@quick
@given(data=st.data(), junk=st.sampled_from(properties.JUNK))
def test_padding_is_invisible_on_continued_calls(name, data, junk):
    properties.padding_on_continued_calls(MADE[name, torch.float64], draw_masks(data), junk)


@cases(name=NAMES)
@quick
@given(data=st.data())
def test_packed_equals_padded_equals_one_by_one(name, data):
    properties.packed_and_padded(MADE[name, torch.float64], draw_rounds(data))


@cases(name=NAMES)
@quick
@given(schedule=schedules)
def test_sessions_do_not_see_each_other(name, schedule):
    properties.sessions_are_isolated(MADE[name, torch.float32], schedule)


@cases(name=NAMES)
@quick
@given(tokens=st.integers(1, 70), data=st.data())
def test_the_future_changes_nothing_before_it(name, tokens, data):
    properties.causality(MADE[name, torch.float32], tokens, data.draw(st.integers(0, tokens - 1)))


@cases(name=NAMES)
@quick
@given(order=st.permutations(range(4)), pieces=properties.few)
def test_permuting_the_batch_permutes_the_result(name, order, pieces):
    properties.permutation(MADE[name, torch.float32], order, pieces)


@cases(name=NAMES)
def test_layouts_edited_in_place_are_obeyed(name):
    properties.layouts_edited_in_place(MADE[name, torch.float64])


@cases(name=list(STRATEGIES))
def test_every_strategy_has_the_properties(name):
    """One example of each; `test_many_examples_of_every_property` draws more, those of the layers below too."""
    single, double = MADE[name, torch.float32], MADE[name, torch.float64]
    properties.any_split(double, [3, 0, 1, 20], True)
    properties.next_token(double, 5, 3)
    keep = [torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]).bool(), torch.tensor([[1, 0], [0, 0]]).bool()]
    properties.padding_on_continued_calls(double, keep, float("nan"))
    properties.packed_and_padded(double, [[3, 0, 5], [0, 2, 1]])
    properties.sessions_are_isolated(single, [(0, 3), (1, 1), (0, 1), (2, 7), (1, 4)])
    properties.causality(single, 20, 11)


@pytest.mark.slow
@cases(name=list(EVERY))
@many
@given(data=st.data())
def test_many_examples_of_every_property(name, data):
    single, double = MADE[name, torch.float32], MADE[name, torch.float64]
    pieces, grad = data.draw(properties.sizes), data.draw(st.booleans())
    for subject in (single, double):
        properties.any_split(subject, at_length(pieces, subject.dtype), grad)
    properties.padding_on_continued_calls(double, draw_masks(data), data.draw(st.sampled_from(properties.JUNK)))
    properties.packed_and_padded(double, draw_rounds(data))
    properties.sessions_are_isolated(single, data.draw(schedules))


def close(got, want):
    assert_close(got, want, rms=properties.TIGHT)


@cases(name=NAMES)
@quick
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=5), repeats=st.integers(1, 3))
def test_picking_rows_of_a_cache_is_picking_rows_of_the_data(name, rows, repeats):
    """Beam search: what `select`, `reorder` and `repeat` make goes on as the sequences that were picked."""
    subject = MADE[name, torch.float64]
    x, more = subject.data(3, 5), subject.data(len(rows), 4, seed=1)
    _, cache = subject(x)
    want, _ = subject(torch.cat([x[rows], more], dim=1))
    close(subject(more, cache.select(rows))[0], want[:, 5:])
    if len(rows) == 3:
        close(subject(more, cache.reorder(rows))[0], want[:, 5:])
    beams = subject.data(3 * repeats, 2, seed=2)
    want, _ = subject(torch.cat([x.repeat_interleave(repeats, 0), beams], dim=1))
    close(subject(beams, cache.repeat(repeats))[0], want[:, 5:])


@cases(name=NAMES)
@quick
@given(ages=st.lists(st.integers(0, 9), min_size=1, max_size=4), data=st.data())
def test_sessions_join_and_part_at_any_age(name, ages, data):
    """Continuous batching, round after round: another set of sessions each time."""
    subject = MADE[name, torch.float64]
    histories = [subject.data(1, age, seed=i) for i, age in enumerate(ages)]
    caches = [subject(x)[1] if x.shape[1] else Cache() for x in histories]
    for turn in range(3):
        chosen = data.draw(st.lists(st.sampled_from(range(len(ages))), min_size=1, unique=True))
        step = subject.data(len(chosen), data.draw(st.integers(1, 3)), seed=50 + turn)
        y, together = subject(step, Cache.stack([caches[i] for i in chosen]))
        for row, (i, cache) in enumerate(zip(chosen, together.unstack())):
            histories[i] = torch.cat([histories[i], step[row : row + 1]], dim=1)
            want, whole = subject(histories[i])
            close(y[row], want[0, -step.shape[1] :])
            properties.close_states(cache, whole, properties.TIGHT)
            assert cache.get_seq_length() == whole.get_seq_length() and subject.lengths(cache) == subject.lengths(whole)
            caches[i] = cache


@cases(name=NAMES)
@quick
@given(drafts=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=5))
def test_a_draft_that_is_rejected_leaves_no_trace(name, drafts):
    """Speculative decoding: fork, try some tokens, keep them or go back; bit for bit."""
    subject = MADE[name, torch.float32]
    _, cache = subject(subject.data(2, 4))
    _, plain = subject(subject.data(2, 4))
    for i, (tokens, accepted) in enumerate(drafts):
        before = cache.fork()
        x = subject.data(2, tokens, seed=i)
        y, after = subject(x, cache)
        cache.rollback(after)
        if accepted:
            want, plain = subject(x, plain)
            assert torch.equal(y, want)
        else:
            cache.rollback(before)
        assert all(torch.equal(a, b) for a, b in zip(states(cache), states(plain)))
        assert cache.get_seq_length() == plain.get_seq_length()


@cases(name=NAMES)
@quick
@given(cut=st.integers(0, 8), dtype=st.sampled_from(PRECISIONS))
def test_a_cache_from_a_file_goes_on_bit_for_bit(name, cut, dtype):
    subject = MADE[name, dtype]
    x = subject.data(2, 8)
    _, cache = subject(x[:, :cut])
    want, _ = subject(x[:, cut:], cache)
    with tempfile.TemporaryDirectory() as folder:
        cache.save(Path(folder) / "cache")
        key = subject.module.fingerprint
        again = Cache.load(Path(folder) / "cache", fingerprint=key, layers=len(cache), batch=2, dtype=dtype)
    assert torch.equal(subject(x[:, cut:], again)[0], want) and again.lengths.tolist() == [cut] * 2

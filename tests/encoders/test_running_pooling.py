"""Running embeddings are those of the whole sequence so far, however it came."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.batch import make_layout
from encoders.pooling import POOLINGS, build_pooling
from encoders.running_pooling import RunningPooling
from myfla.testing import assert_close, cases, raises

D = 5


def pooling(name):
    torch.manual_seed(1)
    module = build_pooling(name, D, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


@cases(name=POOLINGS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(pieces=st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4))
def test_running_equals_pooling_the_whole_so_far(name, pieces):
    module, fed = pooling(name), [torch.zeros(0, D, dtype=torch.float64)] * 3
    running = RunningPooling(module, D)
    state = running.start(3)
    for i, lengths in enumerate(pieces):
        draw = torch.Generator().manual_seed(i)
        new = [torch.randn(n, D, generator=draw, dtype=torch.float64) * 3 for n in lengths]
        got, state = running(torch.cat(new), torch.tensor(lengths), state)
        want = []
        for row, part in enumerate(new):
            for token in part:
                fed[row] = torch.cat([fed[row], token[None]])
                want.append(module(fed[row][None], make_layout(fed[row][None]))[0])
        assert_close(got, torch.stack(want) if want else got, rms=1e-12)
        assert all(part.shape[0] == 3 and part.dtype == torch.float64 for part in state)


@cases(name=POOLINGS)
def test_no_state_is_written(name):
    running = RunningPooling(pooling(name), D)
    before = running.start(2)
    copies = [part.clone() for part in before]
    for lengths in ([1, 1], [3, 0]):
        running(torch.randn(sum(lengths), D, dtype=torch.float64), torch.tensor(lengths), before)
    assert all(torch.equal(part, copy) for part, copy in zip(before, copies))


def test_a_long_stream_stays_exact():
    running = RunningPooling(build_pooling("mean", 1), 1)
    state, total = running.start(1), 0.0
    for i in range(50):
        tokens = torch.full((1000, 1), 0.1 + i)
        got, state = running(tokens, torch.tensor([1000]), state)
        total += float(tokens.double().sum())
    assert_close(got[-1], torch.tensor([total / 50000]), rms=1e-7)


def test_extreme_scores_stay_finite():
    module = pooling("attention")
    with torch.no_grad():
        module.query.weight.mul_(1e4)
    running, x = RunningPooling(module, D), torch.randn(40, D, dtype=torch.float64)
    got, _ = running(x, torch.tensor([40]), running.start(1))
    assert_close(got[-1], module(x[None], make_layout(x[None]))[0], rms=1e-12)


def test_a_foreign_pooling_is_refused():
    with raises(ValueError, "RunningPooling: pooling must be one of MeanPool, LastPool", "Identity"):
        RunningPooling(torch.nn.Identity(), 3)

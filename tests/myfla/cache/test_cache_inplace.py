"""`Cache.in_place`: decoding writes over the recurrent states, and nobody who holds a copy notices."""

from concurrent.futures import ThreadPoolExecutor

import torch

from myfla.models.utils import Cache
from myfla.testing import cases
from state_subjects import ENCODERS, LAYERS, states

SUBJECTS = {f"layer_{name}": make for name, make in LAYERS.items() if name != "rwkv7_ffn"}
SUBJECTS.update((name, ENCODERS[name]) for name in ("gated_deltanet", "rwkv7"))
PIECES = [1, 0, 2, 1, 1]


def begin(name):
    """A subject, its cache after a few tokens of three rows, and more tokens."""
    subject = SUBJECTS[name](torch.float32)
    x = subject.data(3, 12)
    with torch.no_grad():
        _, cache = subject(x[:, :7])
    return subject, cache, x[:, 7:]


def go_on(subject, cache, x, pieces=PIECES):
    """Outputs of more calls, each with the cache that the one before returned."""
    outputs, start = [], 0
    with torch.no_grad():
        for size in pieces:
            y, cache = subject.call(x[:, start : start + size], cache, None, None)
            outputs.append(y)
            start += size
    return torch.cat(outputs, 1), cache


def places(cache):
    return [state["recurrent_state"].data_ptr() for state in cache if state is not None]


@cases(name=list(SUBJECTS))
def test_decoding_in_place_gives_the_same_bits_in_the_same_memory(name):
    subject, cache, x = begin(name)
    want, after = go_on(subject, cache.fork(), x)
    own = cache.in_place()
    before = places(own)
    got, own_after = go_on(subject, own, x)
    assert own_after is own and places(own) == before
    assert torch.equal(got, want) and subject.lengths(own) == subject.lengths(after)
    assert all(torch.equal(a, b) for a, b in zip(states(own), states(after)))


@cases(name=list(SUBJECTS))
def test_sessions_in_place_in_threads_do_not_see_each_other(name):
    """Many one-token calls of sessions that share a module, and began as copies of one cache."""
    subject, cache, x = begin(name)
    inputs = [x.roll(i, 1) for i in range(4)]
    alone = [go_on(subject, cache.in_place(), part, [1] * 5) for part in inputs]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(lambda part: go_on(subject, cache.in_place(), part, [1] * 5), inputs))
    for (y, after), (want, want_after) in zip(together, alone):
        assert torch.equal(y, want) and all(map(torch.equal, states(after), states(want_after)))


@cases(name=["gated_deltanet", "rwkv7"])
def test_packed_rows_go_on_in_place_too(name):
    subject, cache, x = begin(name)
    cu = torch.tensor([0, 2, 2, 5])
    with torch.no_grad():
        want, after = subject.call(x.reshape(1, -1, subject.width)[:, :5], cache.fork(), None, cu)
        own = cache.in_place()
        got, _ = subject.call(x.reshape(1, -1, subject.width)[:, :5], own, None, cu)
    assert torch.equal(got, want) and all(torch.equal(a, b) for a, b in zip(states(own), states(after)))


COPIES = {
    "fork": lambda cache: [cache.fork()],
    "in_place": lambda cache: [cache.in_place()],
    "detach": lambda cache: [cache.detach()],
    "to": lambda cache: [cache.to("cpu")],
    "select": lambda cache: [cache.select([2, 0])],
    "reorder": lambda cache: [cache.reorder([2, 0, 1])],
    "repeat": lambda cache: [cache.repeat(1)],
    "stack": lambda cache: [Cache.stack([cache])],
    "unstack": lambda cache: cache.unstack(copy=False),
    "rollback": lambda cache: [Cache.stack([cache]).rollback(cache)],
    "legacy": lambda cache: [Cache.from_legacy_cache(cache.to_legacy_cache())],
    "fla": lambda cache: [Cache.from_legacy_cache(cache.to_fla(state_v_first=False))],
}


@cases(how=list(COPIES), name=["gated_deltanet", "rwkv7"])
def test_what_was_copied_out_of_it_stays_as_it_was(how, name):
    subject, cache, x = begin(name)
    own = cache.in_place()
    given = [t.clone() for t in states(cache)]
    copies = COPIES[how](own)
    seen = [[t.clone() for t in states(copy)] for copy in copies]
    go_on(subject, own, x)
    assert all(torch.equal(a, b) for copy, want in zip(copies, seen) for a, b in zip(states(copy), want))
    assert all(torch.equal(a, b) for a, b in zip(states(cache), given))


@cases(name=["gated_deltanet", "rwkv7"])
def test_a_rollback_leaves_the_fork_as_it_was(name):
    subject, cache, x = begin(name)
    own, fork = cache.in_place(), cache.fork()
    first, _ = go_on(subject, own, x)
    again, _ = go_on(subject, own.rollback(fork), x)
    third, _ = go_on(subject, fork, x)
    assert own.inplace and torch.equal(first, again) and torch.equal(first, third)


@cases(name=["gated_deltanet", "rwkv7"])
def test_with_autograd_nothing_is_written_over(name):
    subject, cache, x = begin(name)
    own = cache.in_place()
    before, values = [state["recurrent_state"] for state in own], [t.clone() for t in states(own)]
    y, _ = subject.call(x, own, None, None)
    y.sum().backward()
    assert all(torch.equal(t, v) for t, v in zip(before, [v for v in values if v.dim() == 4]))

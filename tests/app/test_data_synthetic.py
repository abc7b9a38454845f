"""Generated tasks: the targets equal those of a second implementation of the rule, step by step."""

import pytest

from app.data import load_data
from cfg.data import SyntheticDataConfig
from cfg.validation import ConfigError
from encoders.training.data.sequences import IGNORE
from myfla.testing import cases


def load(task, **changes):
    changes = {"train_sequences": 50, "test_sequences": 30, **changes}
    return load_data(SyntheticDataConfig(task=task, **changes))


def pairs_of(part):
    return [(part.sequences[i].tolist(), part.targets[i].tolist()) for i in range(len(part))]


def all_pairs(data):
    return [pair for _, part in [("", data.train), *data.tests] for pair in pairs_of(part)]


def test_counting_counts():
    for task, modulus in (("parity", 2), ("counting", 5)):
        for x, targets in all_pairs(load(task, modulus=5)):
            assert targets == [sum(x[: t + 1]) % modulus for t in range(len(x))]


def test_s3_multiplies_permutations():
    from app.data.synthetic import ELEMENTS

    for x, targets in all_pairs(load("s3")):
        state = (0, 1, 2)
        for token, target in zip(x, targets):
            move = ELEMENTS[token]
            state = tuple(move[state[i]] for i in range(3))  # first the state so far, then the token
            assert ELEMENTS[target] == state


def test_recall_asks_for_each_key_once():
    for x, targets in all_pairs(load("recall", pairs=4, symbols=16, train_length=20, test_lengths=[20, 31])):
        values = dict(zip(x[0:8:2], x[1:8:2]))
        assert len(values) == 4 and all(k < 8 <= v < 16 for k, v in values.items())
        asked = [t for t, target in enumerate(targets) if target != IGNORE]
        assert sorted(x[t] for t in asked) == sorted(values) and all(t >= 8 for t in asked)
        assert all(targets[t] == values[x[t]] for t in asked)
        assert not {x[t] for t in range(8, len(x)) if t not in asked} & set(values), "noise holds no key of a pair"


def test_memory_asks_for_the_last_symbol_set():
    data = load("memory", symbols=5, train_length=40, test_lengths=[40, 100])
    for x, targets in all_pairs(data):
        held = None
        for token, target in zip(x, targets):
            held = token if token < 5 else held
            assert target == (held if token == 10 else IGNORE)
        assert targets[-1] == held is not None
    for x, _ in pairs_of(data.longer["100"]):
        assert x[0] < 5 and all(5 <= token < 10 for token in x[1:-1]), "nothing to go by but the first step"


def test_memory_is_trained_on_short_waits_and_on_long_ones():
    data = load("memory", symbols=5, train_length=500, train_sequences=200)
    sets = [sum(token < 5 for token in x) for x, _ in pairs_of(data.train)]
    assert min(sets) == 1 and max(sets) > 100 and 5 < sorted(sets)[100] < 50


@cases(task=["parity", "counting", "s3", "recall", "memory"])
def test_the_sequences_follow_their_own_seed(task):
    small = dict(pairs=2, symbols=8)
    first, again, other = load(task, **small), load(task, **small), load(task, data_seed=1, **small)
    assert pairs_of(first.test) == pairs_of(again.test) != pairs_of(other.test)
    assert [name for name, _ in first.tests] == ["test", "test_64"] and first.test.lengths == [32] * 30
    assert not {str(x) for x, _ in pairs_of(first.train)} & {str(x) for x, _ in pairs_of(first.test)}


@pytest.mark.parametrize(("settings", "reason"), [
    (dict(task="sorting"), "data.task must be one of parity, counting, s3, recall, memory; got 'sorting'"),
    (dict(test_lengths=[]), "data.test_lengths must be a list of integers from 2"),
    (dict(test_lengths=[8, 8]), "data.test_lengths must be different lengths"),
    (dict(task="recall", symbols=16), "data.symbols must be at least 32, four for each of 8 pairs; got 16"),
    (dict(task="recall", train_length=20), "data.pairs must be at most 6 in 20 steps"),
    (dict(modulus=1), "data.modulus must be an integer from 2"),
])
def test_settings_that_make_no_task_are_named(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        SyntheticDataConfig(**settings)

"""Any call of a public function gives the right numbers, or is refused by an error that names who was called.

The subjects, the ways to spoil a call and the judgement are in `fuzz`.
"""

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

import fuzz
from myfla.testing import cases

FEW, MANY = 25, 2000
FUZZ_SEED = int(os.environ.get("MYFLA_FUZZ_SEED", "1"))


def tried(name, examples, start):
    """How many calls were right and how many refused."""
    counts = {"right": 0, "refused": 0}

    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate, Phase.shrink])
    @given(fuzz.calls(name))
    def run(arguments):
        counts[fuzz.judge(name, arguments)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return counts


@cases(name=list(fuzz.SUBJECTS))
def test_a_spoilt_call_is_right_or_refused(name):
    counts = tried(name, FEW, 1)
    assert counts["right"] and counts["refused"], counts


@pytest.mark.slow
@cases(name=list(fuzz.SUBJECTS))
def test_many_spoilt_calls_are_right_or_refused(name, record_property):
    counts = tried(name, MANY, FUZZ_SEED)
    for outcome, number in counts.items():
        record_property(outcome, number)
    print(f"fuzzed {name}: {counts['right']} right, {counts['refused']} refused")


def test_the_judge_notices_wrong_numbers_and_nameless_errors(monkeypatch):
    def half(x):
        return x / 2 if x.dtype == torch.float32 else x

    def nameless(x):
        raise ValueError("something is wrong")

    def crash(x):
        return x[99]

    for function, words in ((half, "x"), (nameless, "does not say who"), (crash, "IndexError")):
        call = fuzz.Call(lambda dtype, function=function: function, lambda: {"x": torch.ones(3)})
        monkeypatch.setitem(fuzz.SUBJECTS, "bad", call)
        with pytest.raises(AssertionError, match=words):
            fuzz.judge("bad", {"x": torch.ones(3)})

"""Any call of a public function gives the right numbers, or is refused by an error that names who was called.

The subjects, the ways to spoil a call and the judgement are in `fuzz`.
"""

import pytest
import torch

import fuzz
from fuzz_run import MANY, SEED, report, tried
from myfla.testing import cases

FEW = 25


def counted(name, examples, start):
    return tried(fuzz.calls(name), lambda arguments: fuzz.judge(name, arguments), examples, start)


@cases(name=list(fuzz.SUBJECTS))
def test_a_spoilt_call_is_right_or_refused(name):
    counts = counted(name, FEW, 1)
    assert counts["right"] and counts["refused"], counts


@pytest.mark.slow
@cases(name=list(fuzz.SUBJECTS))
def test_many_spoilt_calls_are_right_or_refused(name):
    report(name, counted(name, MANY, SEED))


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

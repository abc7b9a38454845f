"""Any call of a public function gives the right numbers, or is refused by an error that names who was called.

The subjects are in `fuzz_subjects`, the ways to spoil a call and the judgement in `fuzz`.
"""

import pytest
import torch

import fuzz
from fuzz_run import MANY, SEED, report, tried
from fuzz_subjects import KNOWN_AS, Call
from myfla.testing import cases
from surface import ours, public

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


def test_every_public_function_and_module_is_a_subject():
    places = ("myfla.ops", "myfla.modules", "myfla.layers")
    found = {name for module, name, thing in public() if module.startswith(places) and callable(thing) and ours(thing)}
    found = {name for name in found if not name.endswith("_ref")}  # what others are held against
    missing = sorted({KNOWN_AS.get(name, name) for name in found} - set(fuzz.SUBJECTS))
    assert not missing, f"give these a right call in tests/support/fuzz_subjects.py: {missing}"


@cases(name=list(fuzz.SUBJECTS))
def test_the_call_that_is_spoilt_is_right(name):
    assert fuzz.judge(name, fuzz.SUBJECTS[name].arguments()) == "right"


def test_the_judge_notices_wrong_numbers_and_nameless_errors(monkeypatch):
    def half(x):
        return x / 2 if x.dtype == torch.float32 else x

    def nameless(x):
        raise ValueError("something is wrong")

    def crash(x):
        return x[99]

    for function, words in ((half, "x"), (nameless, "does not say who"), (crash, "IndexError")):
        call = Call(lambda dtype, function=function: function, lambda: {"x": torch.ones(3)})
        monkeypatch.setitem(fuzz.SUBJECTS, "bad", call)
        with pytest.raises(AssertionError, match=words):
            fuzz.judge("bad", {"x": torch.ones(3)})


@cases(name=["LayerNormLinear", "GroupNormLinear", "RMSNorm", "gdn_chunk", "rwkv7_chunk"])
def test_the_judge_notices_a_result_that_is_one_hundredth_too_large(name, monkeypatch):
    """Also where it counts roundings: those of a wrong result are as small as those of a right one."""
    right = fuzz.SUBJECTS[name]

    def make(dtype):
        call, share = right.make(dtype), 1.01 if dtype == torch.float32 else 1.0
        return lambda **arguments: [t * share for t in fuzz.tensors(call(**arguments))]

    monkeypatch.setitem(fuzz.SUBJECTS, name, Call(make, right.arguments))
    with pytest.raises(AssertionError, match=name):
        fuzz.judge(name, right.arguments())

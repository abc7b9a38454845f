"""The rules themselves: what passes is stored in its plain type, what does not is refused by its key."""

import math
from fractions import Fraction
from types import SimpleNamespace

from cfg.validation import ConfigError, Fields, config_error, nearest
from myfla.testing import cases, raises


def fields(**values):
    return Fields(SimpleNamespace(**values), "job")


@cases(value=[1, 5, 10])
def test_an_integer_inside_passes(value):
    assert fields(n=value).integer("n", 1, 10) == value


def test_null_passes_where_it_may():
    assert fields(n=None).integer("n", 1, 10, optional=True) is None
    assert fields(s=None).text("s", optional=True) is None
    with raises(ConfigError, "job.n must be an integer from 1 to 10 or null; got 11"):
        fields(n=11).integer("n", 1, 10, optional=True)
    with raises(ConfigError, "job.n must be an integer from 1 to 10; got None"):
        fields(n=None).integer("n", 1, 10)
    with raises(ConfigError, "job.s must be a non-empty string or null; got ''"):
        fields(s="").text("s", optional=True)


@cases(value=[0, 0.5, 1, Fraction(1, 3)])
def test_a_number_inside_is_stored_as_a_float(value):
    owner = SimpleNamespace(p=value)
    assert Fields(owner, "job").number("p", 0, 1) == float(value) and type(owner.p) is float


@cases(value=[math.inf, -math.inf, math.nan, 10**400, -(10**400), True, "1", None, 1j])
def test_what_is_no_finite_number_is_refused_without_any_bound(value):
    with raises(ConfigError, "job.p must be a finite number from -inf to inf; got "):
        fields(p=value).number("p", -math.inf, math.inf)


@cases(end=["low", "high"])
def test_open_ends_are_refused(end):
    value = 0 if end == "low" else 1
    assert fields(p=value).number("p", 0, 1) == value
    with raises(ConfigError, "job.p must be a finite number above 0 and below 1; got "):
        fields(p=value).number("p", 0, 1, open_low=True, open_high=True)
    rule = "above 0 to 1" if end == "low" else "from 0 and below 1"
    with raises(ConfigError, f"job.p must be a finite number {rule}; got {value}"):
        fields(p=value).number("p", 0, 1, open_low=end == "low", open_high=end == "high")


def test_words_and_flags():
    assert fields(w="fit").choice("w", ["fit", "test"]) == "fit" and fields(f=False).flag("f") is False
    with raises(ConfigError, "job.w must be one of fit, test; got 'fitt'; did you mean 'fit'?"):
        fields(w="fitt").choice("w", ["fit", "test"])
    with raises(ConfigError, "job.f must be true or false; got 1"):
        fields(f=1).flag("f")


def test_messages_and_hints():
    assert str(config_error("a.b", "must be 1", 2)) == "a.b must be 1; got 2"
    assert str(config_error("a.b", "must be 1", 2, "use 1")) == "a.b must be 1; got 2; use 1"
    assert nearest("meen", ["mean", "max"]) == "did you mean 'mean'?" and nearest("zzz", ["mean", "max"]) == ""
    assert nearest(None, ["mean"]) == ""

"""Hypothesis as a fuzzer: so many inputs from a strategy, each judged, what was said of them counted.

Quick tests try few inputs, always the same. ``MYFLA_FUZZ_EXAMPLES`` says how many the slow ones try of each subject,
``MYFLA_FUZZ_SEED`` which.
"""

import collections
import os
import warnings

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MANY = int(os.environ.get("MYFLA_FUZZ_EXAMPLES", "2000"))
SEED = int(os.environ.get("MYFLA_FUZZ_SEED", "1"))


def tried(strategy, judge, examples, start):
    """``judge(input)`` of each; returns how often it said what. An error in it is shrunk and shown."""
    counts = collections.Counter()

    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate, Phase.shrink])
    @given(strategy)
    def run(value):
        counts[judge(value)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return counts


def report(name, counts):
    """One line for the log of a large run."""
    print(f"fuzzed {name}: {sum(counts.values())} inputs, "
          + ", ".join(f"{number} {what}" for what, number in sorted(counts.items())))


PIECES = (b"\0", b"\xff\xfe", b"nan", b"1e999", b"1e39", b"@data\n", b":", b",", b"\n", b'"', b"{", b"[" * 50, b"-1",
          b"\xe2\x82", b"!!python/object/apply:os.system ['true']\n", b"${oc.env:HOME}", b"../")
PLACE = st.floats(0, 1, exclude_max=True)
EDIT = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("put"), PLACE, st.one_of(st.sampled_from(PIECES), st.binary(max_size=8))),
    st.tuples(st.just("cut"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("double"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("end"), PLACE, st.none()),
)


def changed(data, edits):
    """Bytes with some flipped, put in, cut out, doubled, or cut off."""
    data = bytearray(data)
    for kind, place, more in edits:
        at = int(place * (len(data) + 1))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << more
        elif kind == "put":
            data[at:at] = more
        elif kind == "cut":
            del data[at : at + more]
        elif kind == "double":
            data[at:at] = data[at : at + more]
        elif kind == "end" and at > len(data) // 2:
            del data[at:]
    return bytes(data)


def spoilt(data):
    """A strategy: the file with one to four edits; one in sixteen times bytes that have nothing to do with it."""
    near = st.lists(EDIT, min_size=1, max_size=4).map(lambda edits: changed(data, edits))
    return st.integers(0, 15).flatmap(lambda kind: near if kind else st.binary(max_size=300))

"""Damage to a file of any kind is detected and reported with the path, or does not change what is read.

`readable_files.KINDS` lists the files. Sealed kinds notice every change of the content; of a format that others have
defined and that has no digest, what is structurally wrong is noticed; a table or a text that was cut short is another
one, and what stands before the cut is read as it was.
"""

import pytest

from myfla.testing import cases
from readable_files import KINDS, same_json

SEALED = [name for name, kind in KINDS.items() if kind.sealed]
LINES = [name for name, kind in KINDS.items() if kind.notices == "lines"]


@pytest.fixture
def fresh(tmp_path):
    """``fresh(kind, seed)``: a new folder with such a file; the path of it."""
    made = []

    def make(kind, seed=0):
        made.append(tmp_path / str(len(made)))
        made[-1].mkdir()
        return KINDS[kind].write(made[-1], seed)

    return make


def outcome(kind, path):
    """What is read; or the error, which must be one of ours and name the file or its folder."""
    try:
        return KINDS[kind].read(path), None
    except ValueError as problem:
        text = str(problem)
        assert path.name in text or str(path.parent) in text, f"{type(problem).__name__}: {text}"
        return None, problem


def cut(data):
    for sixteenth in range(16):
        yield data[: len(data) * sixteenth // 16]


def flipped(data):
    for i in range(64):
        changed = bytearray(data)
        changed[len(data) * i // 64] ^= 1 << (i * 5 % 8)
        yield bytes(changed)


@cases(kind=list(KINDS))
def test_an_undamaged_file_is_read_and_read_again(kind, fresh):
    path = fresh(kind)
    first, error = outcome(kind, path)
    assert error is None and first == outcome(kind, path)[0]
    assert KINDS[kind].sealed is False or outcome(kind, fresh(kind, 1))[0] != first, "two seeds must differ"


@cases(kind=[kind for kind in KINDS if kind not in LINES])
def test_a_file_cut_short_at_any_sixteenth_is_refused(kind, fresh):
    path = fresh(kind)
    data = path.read_bytes()
    want = outcome(kind, path)[0]
    for piece in cut(data):
        path.write_bytes(piece)
        got, error = outcome(kind, path)
        if kind == "stream state" and not piece:
            assert error is None and got != want  # to SQLite an empty file is a new one: the input is read from row 1
            continue
        assert error is not None, f"{len(piece)} of {len(data)} bytes"


@cases(kind=LINES)
def test_data_cut_short_are_refused_or_what_stands_before_the_cut(kind, fresh):
    path = fresh(kind)
    whole, want = path.read_bytes(), outcome(kind, path)[0]
    for piece in cut(whole):
        path.write_bytes(piece)
        got, error = outcome(kind, path)
        assert error is not None or got[:-1] == want[: len(got) - 1], f"{len(piece)} of {len(whole)} bytes"
    path.write_bytes(b"")
    assert outcome(kind, path)[1] is not None, "nothing at all"


@cases(kind=[kind for kind, made in KINDS.items() if not made.sealed])
def test_flipped_bits_in_open_formats_are_read_or_refused(kind, fresh):
    path = fresh(kind)
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        outcome(kind, path)


@cases(kind=SEALED)
def test_none_of_64_flipped_bits_changes_what_is_read(kind, fresh):
    path = fresh(kind)
    data, want, noticed = path.read_bytes(), outcome(kind, path)[0], 0
    for damaged in flipped(data):
        path.write_bytes(damaged)
        got, error = outcome(kind, path)
        noticed += error is not None
        assert error is not None or got == want
        if kind not in ("stream state", "encoder manifest"):  # SQLite's free space, and JSON's blanks, mean nothing
            assert error is not None
        elif kind == "encoder manifest" and error is None:
            assert same_json(damaged, data)
    assert noticed > 10


@cases(kind=[kind for kind in KINDS if kind not in ("official config", "run facts", "run config", *LINES)])
def test_bytes_behind_the_end_are_refused_or_mean_nothing(kind, fresh):
    path = fresh(kind)
    data, want = path.read_bytes(), outcome(kind, path)[0]
    for extra in (b"\0", b"x" * 5000):
        path.write_bytes(data + extra)
        got, error = outcome(kind, path)
        assert error is not None or (kind == "stream state" and got == want), extra[:3]


@cases(kind=["encoder weights", "encoder manifest"])
def test_half_of_another_pair_is_refused(kind, fresh):
    path, other = fresh(kind), fresh(kind, 1)
    path.write_bytes(other.read_bytes())
    assert outcome(kind, path)[1] is not None


@cases(kind=SEALED, other=SEALED)
def test_a_file_of_another_kind_is_refused(kind, other, fresh):
    if kind == other:
        pytest.skip("the same kind")
    path = fresh(kind)
    path.write_bytes(fresh(other).read_bytes())
    got, error = outcome(kind, path)
    assert error is not None, got

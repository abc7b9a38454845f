"""Lines and rows: whatever the chunks, the same lines; whatever the line, a row or a reason."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RunError
from app.streaming import lines as lines_module
from app.streaming.lines import Line, Lines, open_file, open_stdin
from app.streaming.rows import Reader, csv_reader, json_reader, looks_like_header
from myfla.testing import cases


def lines_of(chunks):
    waiting = [*chunks, b""]
    return Lines(lambda wait: waiting.pop(0))


def drain(lines, most=3):
    found = []
    while True:
        some = lines.take(most, wait=True)
        assert len(some) <= most
        if not some:
            assert lines.ended
            return found
        found += some


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bc"]), max_size=30).map(b"".join),
       cuts=st.lists(st.integers(0, 60), max_size=5).map(sorted), most=st.integers(1, 4))
def test_any_chunks_give_the_same_lines(text, cuts, most):
    chunks = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)]) if text[i:j]]
    found = drain(lines_of(chunks), most)
    want = text.split(b"\n")
    want = want[:-1] if not want[-1] else want
    assert [line.data for line in found] == [line[:-1] if line.endswith(b"\r") else line for line in want]
    assert sum(line.size for line in found) == len(text)


def test_a_line_that_is_too_long_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(lines_module, "LONGEST", 10)
    text = b"ab\n" + b"x" * 47 + b"\ncd\n" + b"y" * 11 + b"\n" + b"z" * 30
    for size in (1, 7, 100):
        found = drain(lines_of([text[i : i + size] for i in range(0, len(text), size)]))
        assert [line.data for line in found] == [b"ab", None, b"cd", None, None]
        assert [line.size for line in found] == [3, 48, 3, 12, 30]


def test_nothing_there_is_not_the_end():
    waiting = [b"a\nb", None, None, b"c\n", b""]
    lines = Lines(lambda wait: waiting.pop(0))
    assert [line.data for line in lines.take(9, wait=True)] == [b"a"] and not lines.ended
    assert lines.take(9, wait=False) == [] and not lines.ended
    assert [line.data for line in lines.take(9, wait=True)] == [b"bc"] and lines.ended


def test_a_pipe_gives_what_is_there_and_then_its_end():
    read, write = os.pipe()
    lines = open_stdin(read, patience=10)
    os.write(write, b"a\nb\nc")
    assert [line.data for line in lines.take(5, wait=True)] == [b"a", b"b"]
    assert lines.take(5, wait=False) == []
    os.close(write)
    assert [line.data for line in lines.take(5, wait=True)] == [b"c"] and lines.ended
    os.close(read)


def test_a_file_is_read_from_any_byte_on(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\n")
    assert [line.data for line in drain(open_file(path, 4))] == [b"two"]
    with pytest.raises(RunError, match=r"job.input must be a readable file; got .*nothing.*: No such file"):
        open_file(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"job.input must be a readable file"):
        open_file(tmp_path)


def read(parse, *texts, size=2):
    complaints = []
    reader = Reader(parse, size, lambda number, reason: complaints.append((number, reason)))
    data = [text if isinstance(text, (bytes, type(None))) else text.encode() for text in texts]
    rows = reader([Line(text, 0) for text in data], 5)
    assert reader.malformed == len(complaints) and rows.features.dtype == np.float64
    return rows, complaints


def test_json_rows_are_read_in_order():
    rows, complaints = read(json_reader("session", None), '{"session": "a", "features": [1, 2.5], "more": []}', "",
                            '  {"features": [-1e3, 0], "session": 7}\r', '\ufeff{"session": "é", "features": [3, 4]}')
    assert rows.lines.tolist() == [5, 7, 8] and rows.sessions == ["a", "7", "é"] and not complaints
    assert rows.features.tolist() == [[1, 2.5], [-1000, 0], [3, 4]]
    rows, _ = read(json_reader("who", ["x", "y"]), '{"y": 2, "who": "a", "x": 1}')
    assert rows.features.tolist() == [[1, 2]]


GOOD = '{"session": "a", "features": [1, 2]}'


@cases(line=[
    ("nonsense", "Expecting value: line 1 column 1 (char 0); a line must be a JSON object, or the first of all a CSV "
                 "header with the column 'session'"),
    ('{"session": "a", "features": [1, 2]', "Expecting"),
    (GOOD + GOOD, "one JSON object; got more after character 36"),
    (GOOD + ",", "one JSON object"),
    ("[1, 2]", "must be a JSON object; got [1, 2]"),
    ('{"features": [1, 2]}', "must have 'session'; got ['features']"),
    ('{"session": "a"}', "must have 'features'"),
    ('{"session": "a", "features": 3}', "features must be 2 numbers; got 3"),
    ('{"session": "a", "features": [1]}', "features must be 2 numbers; got 1"),
    ('{"session": "a", "features": [1, 2, 3]}', "features must be 2 numbers; got 3"),
    ('{"session": "a", "features": [1, null]}', "features must be numbers; got None"),
    ('{"session": "a", "features": [1, true]}', "features must be numbers; got True"),
    ('{"session": "a", "features": [1, "2"]}', "features must be numbers; got '2'"),
    ('{"session": "a", "features": [1, NaN]}', "finite 32-bit numbers; got nan"),
    ('{"session": "a", "features": [1, -Infinity]}', "finite 32-bit numbers; got -inf"),
    ('{"session": "a", "features": [1, 1e39]}', "finite 32-bit numbers; got 1e+39"),
    ('{"session": "a", "features": [1, 1%s]}' % ("0" * 400), "finite 32-bit numbers"),
    ('{"session": "a", "features": [1, 1%s]}' % ("0" * 5000), ""),
    ('{"session": "", "features": [1, 2]}', "the session must be text of 1 to 1000 characters, or an integer; got ''"),
    ('{"session": 1.5, "features": [1, 2]}', "got 1.5"),
    ('{"session": true, "features": [1, 2]}', "got True"),
    ('{"session": ["a"], "features": [1, 2]}', "got ['a']"),
    ('{"session": "%s", "features": [1, 2]}' % ("a" * 1001), "1000 characters"),
    ('{"session": "\\ud800", "features": [1, 2]}', "whole Unicode characters"),
    ("[" * 100000, ""),
    (b"\xff\xfe", "UTF-8"),
    (None, "at most 1048576 bytes"),
])
def test_a_malformed_line_is_named_and_loses_nothing(line):
    text, reason = line
    rows, complaints = read(json_reader("session", None), GOOD, text, GOOD.replace("1", "8"))
    assert rows.lines.tolist() == [5, 7] and rows.sessions == ["a", "a"]
    assert rows.features.tolist() == [[1, 2], [8, 2]]
    ((number, said),) = complaints
    assert number == 6 and reason in said and len(said) < 300


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts=st.lists(st.one_of(st.text(max_size=30), st.binary(max_size=20), st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3)),
    lambda children: st.one_of(st.lists(children, max_size=3), st.dictionaries(
        st.sampled_from(["session", "features", "x"]), children, max_size=3)), max_leaves=8).map(json.dumps)),
    max_size=5))
def test_no_line_can_stop_the_reader(texts):
    texts = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
    for parse in (json_reader("session", None), csv_reader("session,x,y", "session", None, 2)):
        rows, complaints = read(parse, *texts)
        assert np.isfinite(rows.features).all() and len(rows.sessions) == len(rows.lines) == len(rows.features)
        blank = sum(not text.strip() for text in texts)
        assert len(rows.lines) + len(complaints) + blank == len(texts)


def test_csv_columns_go_by_name():
    header = 'x, session ,"y,z"'
    rows, complaints = read(csv_reader(header, "session", None, 2), "1,a,2", ' 3 ,"b,c",4e0')
    assert rows.sessions == ["a", "b,c"] and rows.features.tolist() == [[1, 2], [3, 4]] and not complaints
    rows, _ = read(csv_reader(header, "x", ["y,z"], 1), "1,a,2", size=1)
    assert rows.sessions == ["1"] and rows.features.tolist() == [[2]]


@cases(line=[("a,1", "3 columns, as the header; got 2"), ("a,1,2,3", "got 4"), ("a,1,", "must be numbers; got ''"),
             ("a,1,x", "must be numbers; got 'x'"), ("a,1,1_0", "must be numbers; got '1_0'"), ("a,1,nan", "got nan"),
             (",1,2", "the session must be text"), ('"a,1,2', "unexpected end"), ('"a"b,1,2', "expected after")])
def test_a_malformed_csv_line_is_named(line):
    text, reason = line
    rows, ((number, said),) = read(csv_reader("session,x,y", "session", None, 2), "a,1,2", text, "b,3,4")
    assert rows.sessions == ["a", "b"] and number == 6 and reason in said


def test_a_header_that_does_not_fit_stops_the_job():
    with pytest.raises(RunError, match=r"one column 'session' in its CSV header; got .'id', 'x'.; set job.session"):
        csv_reader("id,x", "session", None, 1)
    with pytest.raises(RunError, match="one column 'x'"):
        csv_reader("session,x,x", "session", ["x"], 1)
    with pytest.raises(RunError, match=r"3 columns of features, as the encoder reads; got 2: \['x', 'y'\]; choose"):
        csv_reader("session,x,y", "session", None, 3)


def test_a_header_is_known_by_its_session_column():
    assert looks_like_header('a,"session",b', "session") and looks_like_header(" session ", "session")
    for text in ("", '{"session": 1}', "a,b", '"session', '["session"]'):
        assert not looks_like_header(text, "session"), text

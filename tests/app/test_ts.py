"""The `.ts` reader: values, and errors about damaged files."""

import pytest
import torch

from app.data import load_data
from app.data.ts import read_ts
from app.errors import DataError
from cfg.data import JapaneseVowelsDataConfig, TsDataConfig

HEADER = """#a comment
@problemName Tiny
@timeStamps false
@univariate false
@dimensions 2
@equalLength false
@classLabel true up down
@data
"""
LINES = "0.5,1,2:5,6,7:up\n\n-1e-1:4:down\n"


def write(tmp_path, text, name="A.ts"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_values_lengths_and_labels(tmp_path):
    data, classes, _ = read_ts(write(tmp_path, HEADER + LINES))
    assert classes == ["up", "down"] and data.targets.tolist() == [0, 1]
    assert data.sequences[0].tolist() == [[0.5, 5.0], [1.0, 6.0], [2.0, 7.0]]
    assert torch.equal(data.sequences[1], torch.tensor([[-0.1, 4.0]], dtype=torch.float64))
    assert data.tokens == 4


def test_reads_missing_values_where_they_are_allowed(tmp_path):
    data, _, _ = read_ts(write(tmp_path, HEADER + "1,?,NaN:3,4,5:up\n2:3:down\n"), missing=True)
    assert data.sequences[0].isnan().tolist() == [[False, False], [True, False], [True, False]]
    with pytest.raises(DataError, match="channel 1: step 2 must be a finite number; got 'x'"):
        read_ts(write(tmp_path, HEADER + "1,x:3,4:up\n"), missing=True)


def test_reads_numbers_as_targets(tmp_path):
    text = HEADER.replace("@classLabel true up down", "@targetLabel true")
    data, classes, _ = read_ts(write(tmp_path, text + "1,2:3,4:0.5\n1:2:-3e1\n"))
    assert classes is None and data.targets.tolist() == [[0.5], [-30.0]]
    for word in ("up", "nan", "1e39"):
        with pytest.raises(DataError, match=f"9: number after the last ':' must be finite in 32 bits; got '{word}'"):
            read_ts(write(tmp_path, text + f"1,2:3,4:{word}\n"))


def test_without_a_test_file_some_sequences_are_held_out_always_the_same(tmp_path):
    lines = "".join(f"{i}:1:{'up' if i % 2 else 'down'}\n" for i in range(20))
    path = str(write(tmp_path, HEADER + lines))
    data = load_data(TsDataConfig(train_path=path, test_fraction=0.3))
    assert (len(data.train), len(data.test)) == (14, 6) and data.test.targets.bincount().tolist() == [3, 3]
    found = sorted(float(s[0, 0]) for s in data.train.sequences + data.test.sequences)
    assert found == list(range(20))
    again = load_data(TsDataConfig(train_path=path, test_fraction=0.3))
    assert [s.tolist() for s in again.test.sequences] == [s.tolist() for s in data.test.sequences]


def test_reads_one_channel_without_dimensions(tmp_path):
    text = HEADER.replace("@univariate false\n@dimensions 2\n", "@univariate true\n")
    data, _, _ = read_ts(write(tmp_path, text + "1,2,3:up\n"))
    assert data.sequences[0].shape == (3, 1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["header must end with a line '@data'"]),
        (HEADER, ["@data must be followed by at least one sequence"]),
        ("hello\n", ["line 1: header must be lines '@key value'", "'hello'"]),
        (HEADER.replace("@classLabel true up down", "@classLabel maybe") + LINES, ["@classLabel", "'maybe'"]),
        (HEADER.replace("@classLabel true up down", "@classLabel false") + LINES, ["line 9: number of channels", "3"]),
        (HEADER.replace("@classLabel true up down", "@classLabel true up") + LINES, ["at least two classes"]),
        (HEADER.replace("@dimensions 2", "@dimensions two") + LINES, ["@dimensions", "positive whole number", "'two'"]),
        (HEADER.replace("@timeStamps false", "@timeStamps true") + LINES, ["@timeStamps must be false"]),
        (HEADER + "1,2:3,4:sideways\n", ["line 9: label", "up, down", "'sideways'"]),
        (HEADER + "1,2:up\n", ["line 9: number of channels must be 2; got 1"]),
        (HEADER + "1,2:3,4,5:up\n", ["line 9: channels must have the same number of steps", "[2, 3]"]),
        (HEADER + "1,x:3,4:up\n", ["line 9, channel 1: step 2 must be a finite number; got 'x'"]),
        (HEADER + "1,2:3,?:up\n", ["line 9, channel 2: step 2", "'?'", "data.missing=mean"]),
        (HEADER + "1,inf:3,4:up\n", ["channel 1: step 2 must be a finite number; got 'inf'"]),
        (HEADER + "1,-1e39:3,4:up\n", ["channel 1: step 2 must be finite in 32 bits; got '-1e39'"]),
        (HEADER + ":3:up\n", ["line 9, channel 1: step 1 must be a finite number; got ''"]),
        (HEADER + LINES + "1,2:3", ["line 12: label", "'3'"]),
    ],
)
def test_damaged_file_is_refused_by_line_and_channel(tmp_path, text, parts):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_ts(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"must be an existing .ts file; got .*nowhere.ts"):
        read_ts(tmp_path / "nowhere.ts")
    (tmp_path / "B.ts").write_bytes(b"\x81\xff\x00\x81")
    with pytest.raises(DataError, match=r"B.ts: cannot be read as text"):
        read_ts(tmp_path / "B.ts")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_ts(tmp_path)


def test_japanese_vowels_are_what_their_archive_says():
    data = load_data(JapaneseVowelsDataConfig())
    assert (len(data.train), len(data.test), data.input_size) == (270, 370, 12)
    assert data.classes == [str(speaker) for speaker in range(1, 10)]
    lengths = [len(sequence) for sequence in data.train.sequences + data.test.sequences]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert data.train.targets.bincount().tolist() == [30] * 9
    assert data.test.targets.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]


def test_shortened_japanese_vowels_are_refused(tmp_path, monkeypatch):
    from app.data import japanese_vowels

    for part in ("TRAIN", "TEST"):
        lines = (japanese_vowels.FILES / f"JapaneseVowels_{part}.ts").read_text().splitlines(True)
        write(tmp_path, "".join(lines[:-1] if part == "TEST" else lines), f"JapaneseVowels_{part}.ts")
    monkeypatch.setattr(japanese_vowels, "FILES", tmp_path)
    with pytest.raises(DataError, match=r"JapaneseVowels_TEST.ts: number of sequences must be 370; got 369"):
        load_data(JapaneseVowelsDataConfig())


def test_own_files_must_belong_together(tmp_path):
    train = write(tmp_path, HEADER + LINES, "TRAIN.ts")
    swapped = write(tmp_path, HEADER.replace("up down", "down up") + LINES, "TEST.ts")
    data = load_data(TsDataConfig(train_path=str(train), test_path=str(swapped)))
    assert data.test.targets.tolist() == [0, 1], "labels follow the class names of the training file"
    other = write(tmp_path, HEADER.replace("up down", "up left") + "1:2:left\n", "OTHER.ts")
    with pytest.raises(DataError, match=r"@classLabel must name the classes of .*TRAIN.ts"):
        load_data(TsDataConfig(train_path=str(train), test_path=str(other)))
    wide = write(tmp_path, HEADER.replace("@dimensions 2", "@dimensions 3") + "1:2:3:up\n", "WIDE.ts")
    with pytest.raises(DataError, match="number of channels must be 2 as in training; got 3"):
        load_data(TsDataConfig(train_path=str(train), test_path=str(wide)))


def test_unknown_source_names_the_nearest():
    with pytest.raises(DataError, match=r"data.name must be one of japanese_vowels, ts, .*; got 'japanese_vowel'; did"):
        load_data(TsDataConfig(name="japanese_vowel", train_path="a", test_path="b"))

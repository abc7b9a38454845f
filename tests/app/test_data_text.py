"""Text: windows of bytes or tokens, that cover everything once and never reach into another file."""

import pytest
import torch

from app.data import load_data
from app.errors import DataError
from cfg.data import TextDataConfig
from encoders.training.data.prepared import Prepared
from myfla.testing import cases

TEXT = "The quick brown fox jumps over the lazy dog; naïve façade. " * 30


def parts(data):
    return [data.train, data.test]


def test_bytes_are_cut_into_windows_that_share_one_byte(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    data = load_data(TextDataConfig(train_path=str(tmp_path / "a.txt"), window=16))
    want = TEXT.encode("utf-8")
    windows = {}
    for part in parts(data):
        for i in range(len(part)):
            windows[int(part.sequences.starts[i])] = bytes(part.sequences[i].tolist())
    assert data.vocab_size == 256 and data.classes is None
    assert sorted(windows) == list(range(0, len(want) - 1, 16))
    assert all(window == want[start : start + 17] for start, window in windows.items())
    sample = Prepared(data.train, None, shift=True)[0]
    assert torch.equal(sample.x[1:].long(), sample.target[:-1]) and sample.target.dtype == torch.int64


def test_files_of_a_folder_are_not_joined_and_not_split(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02}.txt").write_bytes(bytes([i]) * 40)
    (tmp_path / "other.log").write_bytes(b"\xff" * 99)
    data = load_data(TextDataConfig(train_path=str(tmp_path), window=16, test_fraction=0.3))
    seen = []
    for part in parts(data):
        names = [set(part.sequences[i].tolist()) for i in range(len(part))]
        assert all(len(name) == 1 for name in names)
        seen.append({name for names_ in names for name in names_})
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(60)) and 15 <= len(seen[1]) <= 21


def test_a_tokenizer_file_gives_its_tokens(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=80, special_tokens=["?"], show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    made.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    config = dict(train_path=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / "t.json"), window=8)
    data = load_data(TextDataConfig(**config))
    ids = made.encode(TEXT).ids
    assert data.vocab_size == made.get_vocab_size() and data.train.sequences.values.tolist() == ids
    (tmp_path / "a.txt").write_bytes(b"ab \xff\xfe " * 50)
    with pytest.raises(DataError, match=r"a.txt: cannot be read as UTF-8.*leave data.tokenizer out to read bytes"):
        load_data(TextDataConfig(**config))
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer must be a tokenizer file of Hugging Face"):
        load_data(TextDataConfig(**config))
    with pytest.raises(DataError, match="tokenizer must be an existing file"):
        load_data(TextDataConfig(**{**config, "tokenizer": str(tmp_path / "none.json")}))


@cases(damage=["missing", "empty", "short", "pattern"])
def test_what_is_no_text_is_named(tmp_path, damage):
    path = tmp_path / "a.txt"
    if damage != "missing":
        path.write_text("" if damage == "empty" else "abc")
    reasons = {"missing": "must be an existing file or folder", "empty": "must be longer than one window of 256 steps",
               "short": "must be longer than one window", "pattern": "folder must hold files .*set data.pattern"}
    where = tmp_path if damage == "pattern" else path
    with pytest.raises(DataError, match=reasons[damage]):
        load_data(TextDataConfig(train_path=str(where), pattern="*.md"))

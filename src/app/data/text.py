"""Your own text: ``data=text data.train_path=FOLDER job.objective=next_step``, as bytes or through a tokenizer.

A sequence is a window of ``data.window`` steps and the token after it. Neighbouring windows resemble each other, so
splits keep them together: by file where there are many, else by a fiftieth of the text.
"""

from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from app.data.views import Views, empty_array
from app.errors import DataError, data_error
from cfg.data import TextDataConfig
from encoders.training.data.sequences import SequenceData, SequenceSet

__all__ = ["load"]

PIECE = 1 << 20  # characters that are tokenised together
PARTS = 50


def load(config: TextDataConfig) -> SequenceData:
    """Read the files.

    Raises:
        DataError: no files, too little text, text that is no UTF-8 (with a tokenizer), a damaged tokenizer, or
            tokenizers is not installed.
    """
    tokenizer = None if config.tokenizer is None else _tokenizer(config.tokenizer)
    train = _read(config, config.train_path, tokenizer)
    test = None if config.test_path is None else _read(config, config.test_path, tokenizer)
    size = 256 if tokenizer is None else tokenizer.get_vocab_size()
    return SequenceData(train, test, None, vocab_size=size)


def _read(config: TextDataConfig, path: str, tokenizer: Any) -> SequenceSet:
    place = Path(path)
    if not place.exists():
        raise data_error("data", "path", "must be an existing file or folder", path)
    files = [place] if place.is_file() else sorted(
        p for p in place.rglob(config.pattern)
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(place).parts))
    if not files:
        raise data_error(path, "folder", f"must hold files {config.pattern!r}", 0, "set data.pattern")
    tokens, sizes = _bytes(files, config) if tokenizer is None else _tokens(files, config, tokenizer)
    starts: List[Tensor] = []
    groups: List[Tensor] = []
    ends: List[Tensor] = []
    begin = 0
    for number, size in enumerate(sizes):
        first = torch.arange(begin, begin + max(size - 1, 0), config.window)
        starts.append(first)
        ends.append((first + config.window + 1).clamp(max=begin + size))
        groups.append(torch.full_like(first, number))
        begin += size
    start, end, group = torch.cat(starts), torch.cat(ends), torch.cat(groups)
    if len(start) < 2:
        raise data_error(path, "text", f"must be longer than one window of {config.window} steps", begin,
                         "lower data.window")
    if len(group.unique()) < PARTS:
        group = torch.arange(len(start)) * PARTS // len(start)
    return SequenceSet(Views(tokens, start, end), torch.zeros(len(start), dtype=torch.int64), group)


def _bytes(files: List[Path], config: TextDataConfig) -> Tuple[Tensor, List[int]]:
    sizes = [file.stat().st_size for file in files]
    values = empty_array((sum(sizes),), np.uint8, config.scratch)
    at = 0
    for file, size in zip(files, sizes):
        if size:
            values[at : at + size] = np.memmap(file, dtype=np.uint8, mode="r", shape=(size,))
        at += size
    return torch.from_numpy(values), sizes


def _tokens(files: List[Path], config: TextDataConfig, tokenizer: Any) -> Tuple[Tensor, List[int]]:
    """Two passes, the first only to count: the text may be larger than memory."""
    sizes = [sum(len(ids) for ids in _encoded(file, tokenizer)) for file in files]
    values = empty_array((sum(sizes),), np.int32, config.scratch)
    at = 0
    for file in files:
        for ids in _encoded(file, tokenizer):
            values[at : at + len(ids)] = ids
            at += len(ids)
    return torch.from_numpy(values), sizes


def _encoded(file: Path, tokenizer: Any) -> Iterator[List[int]]:
    try:
        with open(file, encoding="utf-8") as text:
            lines = text.readlines(PIECE)
            while lines:
                yield tokenizer.encode("".join(lines), add_special_tokens=False).ids
                lines = text.readlines(PIECE)
    except UnicodeDecodeError as problem:
        raise DataError(f"{file}: cannot be read as UTF-8: {problem}; leave data.tokenizer out to read bytes") from None


def _tokenizer(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise DataError("data.tokenizer needs the package 'tokenizers'; pip install 'myfla[text]'") from None
    found: Optional[Any] = None
    if Path(path).is_file():
        try:
            found = Tokenizer.from_file(path)
        except Exception as problem:  # the package raises plain Exception
            raise data_error("data", "tokenizer", "must be a tokenizer file of Hugging Face", path,
                             str(problem)) from None
    if found is None:
        raise data_error("data", "tokenizer", "must be an existing file", path)
    return found

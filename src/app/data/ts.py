"""Reader for the `.ts` text format of the UEA/UCR time series archive.

A header of ``@key value`` lines and ``#`` comments, then ``@data``, then one sequence a line: the channels separated by
colons, the steps of a channel by commas, the class label (or with ``@targetLabel true`` a number) after the last colon,
a missing value as ``?`` or ``NaN``::

    @problemName Tiny
    @timeStamps false
    @univariate false
    @dimensions 2
    @equalLength false
    @classLabel true up down
    @data
    0.1,0.2,0.3:5.0,5.0,5.0:up
    0.3,0.1:5.0,4.0:down
"""

import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor

from app.data.sequences import SequenceSet
from app.errors import DataError, data_error

__all__ = ["read_ts"]

LARGEST = torch.finfo(torch.float32).max


def read_ts(path: Union[str, Path], missing: bool = False) -> Tuple[SequenceSet, Optional[List[str]]]:
    """Read a file.

    Args:
        path: a `.ts` file, UTF-8; equal or unequal lengths, one or many channels.
        missing: whether values may be missing; they are NaN then.

    Returns:
        the sequences, each ``[T_i, D]`` float32 with T_i >= 1, and the class names in the order of the header; for
        regression the targets are ``[N, 1]`` float32, and there are no names.

    Raises:
        DataError: the file is missing, has no header or no sequences, or a line breaks the format; the message names
            the file, the line, the channel and what came.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise data_error("data", "path", "must be an existing .ts file", str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None
    header, start = _read_header(path, lines)
    classes = _classes(path, header)
    channels = _channels(path, header)
    sequences: List[Tensor] = []
    labels: List[Any] = []
    for number, line in enumerate(lines[start:], start + 1):
        if line.strip() and not line.startswith("#"):
            sequence, label = _read_sequence(f"{path}, line {number}", line.strip(), classes, channels, missing)
            channels = sequence.shape[1]
            sequences.append(sequence)
            labels.append(label)
    if not sequences:
        raise data_error(str(path), "@data", "must be followed by at least one sequence", 0)
    targets = torch.tensor(labels) if classes is not None else torch.tensor(labels, dtype=torch.float32)[:, None]
    return SequenceSet(sequences, targets), classes


def _read_header(path: Path, lines: List[str]) -> Tuple[Dict[str, List[str]], int]:
    """The ``@key value ...`` lines by lower-case key, and the number of lines up to and with ``@data``."""
    header: Dict[str, List[str]] = {}
    for index, line in enumerate(lines):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if not words[0].startswith("@"):
            raise data_error(f"{path}, line {index + 1}", "header", "must be lines '@key value' up to @data", line[:40])
        if words[0].lower() == "@data":
            return header, index + 1
        header[words[0].lower()] = words[1:]
    raise data_error(str(path), "header", "must end with a line '@data'", f"{len(lines)} lines without it")


def _classes(path: Path, header: Dict[str, List[str]]) -> Optional[List[str]]:
    words = header.get("@classlabel", [])
    if header.get("@targetlabel", ["false"])[0].lower() == "true":
        return None
    if not words or words[0].lower() != "true":
        raise data_error(str(path), "@classLabel", "must be 'true' followed by the class names", " ".join(words),
                         "or write '@targetLabel true' where the labels are numbers")
    if len(words) < 3:
        raise data_error(str(path), "@classLabel", "must name at least two classes", words[1:])
    if header.get("@timestamps", ["false"])[:1] not in (["false"], ["False"]):
        raise data_error(str(path), "@timeStamps", "must be false: time stamps are not read", header["@timestamps"])
    return words[1:]


def _channels(path: Path, header: Dict[str, List[str]]) -> Optional[int]:
    if "@dimensions" in header:
        words = header["@dimensions"]
        if len(words) != 1 or not words[0].isdigit() or words[0] == "0":
            raise data_error(str(path), "@dimensions", "must be a positive whole number", " ".join(words))
        return int(words[0])
    return 1 if header.get("@univariate", [""])[0].lower() == "true" else None


def _read_sequence(who: str, line: str, classes: Optional[List[str]], channels: Optional[int],
                   missing: bool) -> Tuple[Tensor, Any]:
    *columns, word = line.split(":")
    if classes is None:
        label: Any = _number(word)
        if not math.isfinite(label) or abs(label) > LARGEST:
            raise data_error(who, "number after the last ':'", "must be finite in 32 bits", word[:40])
    elif word not in classes:
        raise data_error(who, "label after the last ':'", f"must be one of {', '.join(classes)}", word[:40])
    else:
        label = classes.index(word)
    if not columns or (channels is not None and len(columns) != channels):
        raise data_error(who, "number of channels", f"must be {channels or 'at least 1'}", len(columns))
    values = [_read_channel(f"{who}, channel {index}", text, missing) for index, text in enumerate(columns, 1)]
    lengths = sorted({len(channel) for channel in values})
    if len(lengths) > 1:
        raise data_error(who, "channels", "must have the same number of steps", lengths)
    return torch.tensor(values, dtype=torch.float32).t().contiguous(), label


def _read_channel(who: str, text: str, missing: bool) -> List[float]:
    values = []
    for step, word in enumerate(text.split(","), 1):
        value = _number(word)
        if not math.isfinite(value):
            unknown = word.strip() in ("?", "NaN", "nan")
            if not (unknown and missing):
                hint = "say with data.missing=mean or data.missing=forward what to put there" if unknown else ""
                raise data_error(who, f"step {step}", "must be a finite number", word, hint)
        elif abs(value) > LARGEST:
            raise data_error(who, f"step {step}", "must be finite in 32 bits", word)
        values.append(value)
    return values


def _number(word: str) -> float:
    """NaN where it is none."""
    try:
        return float(word)
    except ValueError:
        return math.nan

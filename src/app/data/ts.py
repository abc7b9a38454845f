"""Reader for the `.ts` text format of the UEA/UCR time series archive.

A header of ``@key value`` lines and comments (``#`` or ``%``), then ``@data``, then one sequence a line: the channels
separated by colons, the steps of a channel by commas, the class label (or with ``@targetLabel true`` a number) after
the last colon, a missing value as ``?`` or ``NaN``::

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
from typing import Any, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from app.data.class_names import class_name
from app.data.ts_header import Header, read_header, read_lines
from app.errors import data_error
from encoders.training.data.sequences import IGNORE, SequenceSet

__all__ = ["TsData", "read_ts"]

LARGEST = torch.finfo(torch.float32).max


class TsData(NamedTuple):
    """A file, read.

    Attributes:
        data: the sequences, each ``[T_i, D]`` float64 with T_i >= 1; targets are numbers of classes, ``[N, 1]`` float64
            values, or zeros where the file has none.
        classes: names, in the order of the header; None for values and without labels.
        labelled: whether the file has targets.
    """

    data: SequenceSet
    classes: Optional[List[str]]
    labelled: bool = True


def read_ts(path: Union[str, Path], missing: bool = False, targets: bool = True) -> TsData:
    """Read a file.

    Args:
        path: a `.ts` file, UTF-8; equal or unequal lengths, one or many channels.
        missing: whether values may be missing; they are NaN then.
        targets: whether they are needed; if not, a label may be ``?``, an unknown class, or missing.

    Raises:
        DataError: the file is missing, has no header or no sequences, or a line breaks the format; the message names
            the file, the line, the channel and the value.
    """
    path = Path(path)
    lines = read_lines(path)
    header, start = read_header(path, lines)
    channels = header.channels
    sequences: List[Tensor] = []
    labels: List[Any] = []
    for number, line in enumerate(lines[start:], start + 1):
        text = line.strip()
        if text and not text.startswith(("#", "%")):
            found, label = _read_sequence(f"{path}, line {number}", text, header, channels, missing, targets)
            channels = found.shape[1]
            sequences.append(found)
            labels.append(label)
    if not sequences:
        raise data_error(str(path), "@data", "must be followed by at least one sequence", 0)
    if header.labels == "none" or (header.labels == "values" and not targets):
        return TsData(SequenceSet(sequences, torch.zeros(len(sequences), dtype=torch.int64)), None, False)
    if header.labels == "values":
        return TsData(SequenceSet(sequences, torch.tensor(labels, dtype=torch.float64)[:, None]), None)
    return TsData(SequenceSet(sequences, torch.tensor(labels)), header.classes)


def _read_sequence(who: str, line: str, header: Header, channels: Optional[int], missing: bool,
                   targets: bool) -> Tuple[Tensor, Any]:
    if line.startswith("("):
        raise data_error(who, "steps", "must be numbers: time stamps, (time, value), are not read", line[:40],
                         "write the values alone, in order, or use a table with data.time")
    columns, label = line.split(":"), None
    if header.labels != "none":
        *columns, word = columns
        label = _label(who, word.strip(), header, targets)
    if not columns or (channels is not None and len(columns) != channels):
        raise data_error(who, "number of channels", f"must be {channels or 'at least 1'}", len(columns))
    values = [_read_channel(f"{who}, channel {index}", text, missing) for index, text in enumerate(columns, 1)]
    steps = max(map(len, values))
    if missing:  # a missing channel is a single mark
        values = [channel * steps if len(channel) == 1 and math.isnan(channel[0]) else channel for channel in values]
    lengths = sorted({len(channel) for channel in values})
    if len(lengths) > 1:
        raise data_error(who, "channels", "must have the same number of steps", lengths)
    return torch.tensor(values, dtype=torch.float64).t().contiguous(), label


def _label(who: str, word: str, header: Header, targets: bool) -> Any:
    if header.labels == "values":
        value = _number(word)
        if targets and (not math.isfinite(value) or abs(value) > LARGEST):
            raise data_error(who, "number after the last ':'", "must be finite in 32 bits", word[:40])
        return value
    name = class_name(word)
    if name in header.classes:
        return header.classes.index(name)
    if not targets:
        return IGNORE
    hint = "a row without a label is for job=encode and job=predict" if word == "?" else ""
    raise data_error(who, "label after the last ':'", f"must be one of {', '.join(header.classes)}", word[:40], hint)


def _read_channel(who: str, text: str, missing: bool) -> List[float]:
    values = []
    words = text.split(",") if text.strip() or not missing else ["?"]
    for step, word in enumerate(words, 1):
        value = _number(word)
        if not math.isfinite(value):
            unknown = word.strip() in ("?", "NaN", "nan")
            if not (unknown and missing):
                hint = "set data.missing=mean or data.missing=forward to replace it" if unknown else ""
                raise data_error(who, f"step {step}", "must be a finite number", word, hint)
        elif abs(value) > LARGEST:
            raise data_error(who, f"step {step}", "must be finite in 32 bits", word)
        values.append(value)
    return values


def _number(word: str) -> float:
    """The number, or NaN if it is not one."""
    try:
        return float(word) if "_" not in word else math.nan
    except ValueError:
        return math.nan

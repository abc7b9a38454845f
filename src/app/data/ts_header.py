"""The lines of a `.ts` file and its header."""

import gzip
import zlib
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from app.data.class_names import class_name
from app.errors import DataError, data_error

__all__ = ["Header", "read_header", "read_lines"]

_OTHERS = {".arff": "ARFF (Weka)", ".tsf": "TSF (Monash forecasting archive)"}
_INSTEAD = "take the archive's .ts file of the same name, or write it as a table (data=table)"


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        labels: ``classes``, ``values`` or ``none``.
        classes: their names.
        channels: their number, if the header has it.
    """

    labels: str
    classes: List[str]
    channels: Optional[int]


def read_lines(path: Path) -> List[str]:
    """The lines of a file; invalid bytes in comments do not matter.

    Raises:
        DataError: the file does not exist, has another format, or is not text.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise data_error("data", "path", "must be an existing .ts file", str(path)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None
    if path.suffix.lower() in _OTHERS:
        raise data_error(str(path), "file", "must be in the .ts format", _OTHERS[path.suffix.lower()], _INSTEAD)
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked by gzip: {error}") from None
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        whole = data.decode(encoding, "surrogateescape" if encoding != "utf-16" else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None
    lines = whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # control characters end no line
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text.startswith(("#", "%")) and (any("\udc80" <= c <= "\udcff" for c in text) or "\0" in text):
            shown = text[:40].encode("utf-8", "surrogateescape")
            raise DataError(f"{path}: cannot be read as text: line {number} must be UTF-8; got {shown!r}")
    return lines


def read_header(path: Path, lines: List[str]) -> Tuple[Header, int]:
    """The header, and the number of lines up to and including ``@data``.

    Raises:
        DataError: a line is not ``@key value``, or the value of a key is wrong.
    """
    found: Dict[str, List[str]] = {}
    for index, line in enumerate(lines):
        words = line.split()
        if not words or words[0].startswith(("#", "%")):
            continue
        if not words[0].startswith("@"):
            raise data_error(f"{path}, line {index + 1}", "header", "must be lines '@key value' up to @data",
                             line.strip()[:40])
        key = words[0].lower()
        if key == "@data":
            return _header(path, found), index + 1
        if key == "@attribute":
            forecasting = words[1:2] in (["series_name"], ["start_timestamp"])
            other = _OTHERS[".tsf" if forecasting else ".arff"]
            raise data_error(f"{path}, line {index + 1}", "file", "must be in the .ts format", other, _INSTEAD)
        found[key] = words[1:]
    raise data_error(str(path), "header", "must end with a line '@data'", f"{len(lines)} lines without it")


def _header(path: Path, found: Dict[str, List[str]]) -> Header:
    stamps = found.get("@timestamps", ["false"])
    if [word.lower() for word in stamps[:1]] != ["false"]:
        raise data_error(str(path), "@timeStamps", "must be false: time stamps are not read", " ".join(stamps),
                         "write the values alone, in order, or use a table with data.time")
    words = found.get("@classlabel", [])
    channels = _channels(path, found)
    if found.get("@targetlabel", ["false"])[:1] and found.get("@targetlabel", ["false"])[0].lower() == "true":
        return Header("values", [], channels)
    if not words or words[0].lower() == "false":
        return Header("none", [], channels)
    if words[0].lower() != "true":
        raise data_error(str(path), "@classLabel", "must be 'true' followed by the class names, or 'false'",
                         " ".join(words), "or write '@targetLabel true' where the labels are numbers")
    if len(words) < 3:
        raise data_error(str(path), "@classLabel", "must name at least two classes", words[1:])
    names = [class_name(word) for word in words[1:]]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise data_error(str(path), "@classLabel", "must name each class once", twice[0])
    return Header("classes", names, channels)


def _channels(path: Path, found: Dict[str, List[str]]) -> Optional[int]:
    if "@dimensions" in found:
        words = found["@dimensions"]
        if len(words) != 1 or not words[0].isdigit() or int(words[0]) == 0:
            raise data_error(str(path), "@dimensions", "must be a positive whole number", " ".join(words))
        return int(words[0])
    return 1 if [word.lower() for word in found.get("@univariate", [])[:1]] == ["true"] else None

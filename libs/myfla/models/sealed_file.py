"""Tensors in a safetensors file in which every change is detected.

safetensors refuses a truncated file but loads one with a flipped bit without an error, so the file carries a SHA-256 of
itself, taken with the digest's own place filled with zeros. Files are written under another name, synced, and then
renamed: a reader sees the old file or the new one, never half of one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Tuple, Type, Union

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors

from myfla.utils.atomic import write_atomic
from myfla.utils.errors import message
from myfla.utils.regular import read_regular

__all__ = ["read_sealed", "write_sealed"]

_DIGEST = "sha256:"
_BLANK = "0" * 64


def write_sealed(path: Union[str, Path], kind: str, tensors: Dict[str, torch.Tensor], facts: Dict[str, Any]) -> None:
    """Write tensors and JSON facts to one file, atomically.

    Args:
        path: the file; an existing one is replaced.
        kind: what the file is, e.g. ``"myfla.cache"``; the reader must ask for the same.
        tensors: by name, any device and layout.
        facts: anything that JSON can hold.

    Raises:
        OSError: the folder is missing, read-only or full; the old file is then untouched.
    """
    # Copies: safetensors refuses tensors that share memory, as the views of one state may.
    contiguous = torch.contiguous_format
    tensors = {name: tensor.detach().cpu().clone(memory_format=contiguous) for name, tensor in tensors.items()}
    # One metadata entry: safetensors writes several in random order, and equal caches shall give equal files.
    note = json.dumps({"kind": kind, "digest": _DIGEST + _BLANK, "facts": facts}, sort_keys=True)
    data = format_tensors(tensors, {"myfla": note})
    seal = _DIGEST + hashlib.sha256(data).hexdigest()
    data = data.replace((_DIGEST + _BLANK).encode(), seal.encode(), 1)
    write_atomic(Path(path), data)


def read_sealed(
    path: Union[str, Path], kind: str, error: Type[ValueError]
) -> Tuple[Dict[str, torch.Tensor], Dict[str, Any]]:
    """Read what `write_sealed` wrote.

    Args:
        path: the file.
        kind: what it must be.
        error: class of the exception for a file that is missing, foreign or damaged.

    Returns:
        ``(tensors on the CPU, facts)``.
    """
    who = f"{kind} file {path}"
    try:
        data = read_regular(path)
    except OSError as problem:
        raise error(f"{who}: path must be a readable file; got {problem.strerror or problem}") from None
    note = _note(data, who, kind, error)
    digest = str(note.get("digest", ""))
    blank = data.replace(digest.encode(), (_DIGEST + _BLANK).encode(), 1) if digest.startswith(_DIGEST) else b""
    if _DIGEST + hashlib.sha256(blank).hexdigest() != digest:
        raise error(message(who, "sha256", "must match the content", "another value", "the file is damaged"))
    try:
        return parse_tensors(data), note["facts"]
    except Exception as problem:  # any error of safetensors for a file with a wrong header
        raise error(message(who, "format", "must be safetensors", str(problem))) from None


def _note(data: bytes, who: str, kind: str, error: Type[ValueError]) -> Dict[str, Any]:
    """The JSON written by `write_sealed`, from the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise error(message(who, "format", "must be safetensors", f"{len(data)} bytes", "cut short or foreign"))
    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"))
        note = json.loads(header["__metadata__"]["myfla"])
        found = note["kind"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise error(message(who, "format", f"must be {kind!r}", "a header without that mark")) from None
    if found != kind:
        raise error(message(who, "format", f"must be {kind!r}", found))
    return note

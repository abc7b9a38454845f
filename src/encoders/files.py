"""Files that exist completely or not at all, and whose changes are detected."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict

from myfla.utils.atomic import write_atomic
from myfla.utils.errors import CheckpointError
from myfla.utils.regular import check_regular, read_regular

__all__ = ["digest", "parse_manifest", "read_bytes", "refuse", "seal_manifest", "weights_name", "write_atomic"]

_LIMIT = 16 << 20  # bytes; a manifest holds a config and a few digests


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def refuse(path: Path, rule: str, got: str, remedy: str) -> CheckpointError:
    """The error for a file: its path, the rule, what was found, and what to do."""
    return CheckpointError(f"load_encoder: {path} {rule}; got {got}; {remedy}")


def read_bytes(path: Path, remedy: str, limit: int = 1 << 62) -> bytes:
    """The content of a file.

    Raises:
        CheckpointError: it is missing, unreadable, or larger than ``limit``.
    """
    try:
        size = check_regular(path).st_size
        if size > limit:
            raise refuse(path, f"must be at most {limit} bytes", str(size), "the file is damaged or of another kind")
        return read_regular(path)
    except OSError as problem:
        raise refuse(path, "must be a readable file", problem.strerror or str(problem), remedy) from None


def seal_manifest(manifest: Dict[str, Any]) -> bytes:
    """A manifest as JSON text, with the digest of its own content under ``sha256``."""
    text = json.dumps({**manifest, "sha256": digest(_canonical(manifest))}, indent=2, sort_keys=True)
    return (text + "\n").encode("utf-8")


def parse_manifest(path: Path, kind: str, version: int, remedy: str) -> Dict[str, Any]:
    """Read a manifest of `seal_manifest`.

    Args:
        path: the JSON file.
        kind: the required ``format``.
        version: the newest ``format_version`` that can be read.
        remedy: what to do, for the messages.

    Raises:
        CheckpointError: the file is missing, is not JSON, has another format or a newer version, or was changed.
    """
    data = read_bytes(path, remedy, _LIMIT)
    try:
        manifest = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise refuse(path, "must be JSON", f"{type(problem).__name__}", remedy) from None
    if not isinstance(manifest, dict) or manifest.get("format") != kind:
        got = repr(manifest.get("format")) if isinstance(manifest, dict) else type(manifest).__name__
        raise refuse(path, f"must have the format {kind!r}", got, "the file is foreign; write one with encoder.save")
    found = manifest.get("format_version")
    if type(found) is not int or not 1 <= found <= version:
        raise refuse(path, f"must have a format_version from 1 to {version}", repr(found),
                     "it was written by a newer version; update this package")
    seal = manifest.pop("sha256", None)
    if seal != digest(_canonical(manifest)):
        raise refuse(path, "must match its own sha256", "another content", "it was changed or damaged; " + remedy)
    return manifest


def weights_name(path: Path, manifest: Dict[str, Any]) -> str:
    """The one weights file a manifest names: a plain file name, so that nothing outside the folder is read."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        files = {}
    names = list(files)
    if len(names) != 1 or not re.match(r"[^/\\:\0]+\.safetensors\Z", names[0]) or names[0].startswith("."):
        raise refuse(path, "must name one file, NAME.safetensors in its own folder", repr(names),
                     "do not load it: it was not written by encoder.save")
    entry = files[names[0]]
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or not isinstance(entry.get("sha256"), str):
        raise refuse(path, "must give bytes and sha256 of its file", repr(entry), "write it again with encoder.save")
    return names[0]


def _canonical(manifest: Dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode("utf-8")

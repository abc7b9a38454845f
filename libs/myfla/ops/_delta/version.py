"""Names of this package's operations in compiled graphs, which change with its code.

A compiler keeps its graphs on disk, with the sizes of all results, under keys that hold the names of operations but not
what they do. A graph of one release must not be used with the operations of another, or of a checkout that changes.
"""

import functools
import hashlib
from pathlib import Path

import myfla

__all__ = ["op_name", "source_digest"]


@functools.lru_cache(maxsize=None)
def source_digest(folder: Path = Path(__file__).parent, version: str = myfla.__version__) -> str:
    """Twelve hexadecimal digits of a release and of all Python files below a folder, with their names.

    Args:
        folder: by default this package.
        version: by default that of `myfla`; used alone where the files cannot be read, as in a zip file.
    """
    digest = hashlib.sha256(version.encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def op_name(name: str) -> str:
    """``myfla::NAME_DIGEST``.

    Example:
        >>> op_name("chunk_kda").startswith("myfla::chunk_kda_")
        True
    """
    return f"myfla::{name}_{source_digest()}"

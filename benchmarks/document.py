"""Put tables into a document, between the lines that mark their places."""

from pathlib import Path
from typing import Dict


def insert(path: Path, tables: Dict[str, str]) -> None:
    """Replace the text between ``<!-- benchmark NAME -->`` and ``<!-- end NAME -->``.

    Args:
        path: the document.
        tables: text for each name; text of other names is not changed.

    Raises:
        ValueError: a name has no place in the document.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- benchmark {name} -->", f"<!-- end {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{path}: no lines {begin!r} and {end!r} in this order; add them where the table belongs")
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    path.write_text(text, encoding="utf-8")

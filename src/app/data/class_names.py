"""Names of classes that are the same from every format."""

import re

__all__ = ["class_name"]

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+", re.ASCII)


def class_name(text: str) -> str:
    """The name of a class that a file writes as ``text``.

    Booleans are ``true`` and ``false``, and whole numbers have no fraction, however a program writes them as text:
    ``True`` (pandas), ``TRUE`` (R), ``1.0`` (whole numbers in a column with an empty cell).

    Example:
        >>> [class_name(text) for text in ("True", "FALSE", "1.0", "01", "up")]
        ['true', 'false', '1', '01', 'up']
    """
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = _WHOLE.fullmatch(text)
    return text if whole is None else whole.group(1)

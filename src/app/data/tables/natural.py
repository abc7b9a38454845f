"""The order of names: ``x2`` before ``x10``."""

import re
from typing import Any, List

__all__ = ["natural"]


def natural(name: str) -> List[Any]:
    """A key to sort by, in which digits count as numbers, however many there are.

    Example:
        >>> sorted(["x10", "x2", "x"], key=natural)
        ['x', 'x2', 'x10']
    """
    parts = re.split("([0-9]+)", name)
    numbers = [digits.lstrip("0") for digits in parts[1::2]]
    found: List[Any] = [parts[0]]
    for digits, text in zip(numbers, parts[2::2]):
        found += [len(digits), digits, text]
    return [found, name]

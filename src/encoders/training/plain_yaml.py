"""Reads YAML from others as plain data: no interpolation, no aliases, no code."""

import re
from pathlib import Path
from typing import Any, Hashable

import yaml

from myfla.utils.regular import read_regular

__all__ = ["find_interpolation", "read_plain_yaml"]

LIMIT = 256 << 10  # bytes; a config has a few thousand
DEEPEST = 32


class _Plain(yaml.SafeLoader):
    """Refuses aliases, with which a few lines can make billions of values, and duplicate keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: must not repeat a value; got the alias "
                                 f"*{event.anchor}")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"must be nested at most {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: must not merge mappings; got <<")
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in found:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: must have each key once; got {key!r}")
            found[key] = self.construct_object(value_node, deep=True)
        return found


# As OmegaConf writes and reads them: 1e-3 is a number, a date is text.
_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found
            if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.[\d_]+([eE][-+]?\d+)?"
                    r"|\.(inf|Inf|INF))\Z|\.(nan|NaN|NAN)\Z")
_Plain.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_plain_yaml(path: Path) -> Any:
    """The content of a YAML file: mappings, lists, numbers, text, true, false and null.

    Raises:
        OSError: it cannot be read, is no regular file, or too large.
        YAMLError: it is no YAML, or has tags, aliases or a key twice.
        ValueError: it is no UTF-8 text, or a number of too many digits.
    """
    return yaml.load(read_regular(path, LIMIT).decode("utf-8"), Loader=_Plain)


def find_interpolation(values: Any, key: str = "") -> str:
    """The first value or key with ``${`` in it, as ``key: text``; an empty string if there is none.

    Example:
        >>> find_interpolation({"data": {"paths": ["a", "${oc.env:HOME}"]}})
        "data.paths.1: '${oc.env:HOME}'"
    """
    if isinstance(values, str):
        return f"{key}: {values if len(values) <= 60 else values[:57] + '...'!r}" if "${" in values else ""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        path = f"{key}.{name}" if key else str(name)
        found = (f"{path}: a key" if "${" in str(name) else "") or find_interpolation(value, path)
        if found:
            return found
    return ""

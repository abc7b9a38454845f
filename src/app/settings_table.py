"""Every setting with its meaning, unit, default and range. Meanings come from the docstrings of the config classes,
ranges from their checks. Needs no torch."""

import dataclasses
import inspect
import re
from typing import Any, Dict, List, NamedTuple, Tuple

from cfg.validation import rules_of

__all__ = ["Setting", "default_of", "meanings", "settings_of", "written"]

_ARGS = re.compile(r"^Args:\n(.*?)(?=^\S|\Z)", re.M | re.S)
_FIELD = re.compile(r"^    (\w[\w, ]*?)(?: \(([^()]*)\))?: (.*?)(?=^    \w|\Z)", re.M | re.S)


class Setting(NamedTuple):
    """One field of a config class.

    Attributes:
        name: of the field.
        owner: the class that declares it and whose docstring has its meaning.
        default: ``"???"`` if it must be set.
        rule: which values are allowed.
        unit: unit of a number, or "".
        meaning: what it does.
    """

    name: str
    owner: type
    default: Any
    rule: str
    unit: str
    meaning: str


def settings_of(config_class: type, **given: Any) -> List[Setting]:
    """The settings of a config class, in order.

    Args:
        config_class: of `cfg`.
        given: values of fields without a default; see `cfg.validation.rules_of`.

    Example:
        >>> from cfg.stream import StreamJobConfig
        >>> [setting.unit for setting in settings_of(StreamJobConfig) if setting.name == "commit_seconds"]
        ['seconds']
    """
    rules, said = rules_of(config_class, **given), meanings(config_class)
    found = []
    for field in dataclasses.fields(config_class):
        owner = next(part for part in reversed(config_class.__mro__)
                     if field.name in vars(part).get("__annotations__", {}))
        unit, meaning = said.get(field.name, ("", ""))
        found.append(Setting(field.name, owner, default_of(field), rules.get(field.name, ""), unit, meaning))
    return found


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The default of a field, made where it has to be."""
    make = field.default_factory
    return field.default if make is dataclasses.MISSING else make()


def meanings(config_class: type) -> Dict[str, Tuple[str, str]]:
    """``(unit, meaning)`` of each field by its name, from the docstrings of a config class and its bases.

    Example:
        >>> from cfg.trainer import TrainerConfig
        >>> meanings(TrainerConfig)["max_steps"][0]
        'steps'
    """
    found: Dict[str, Tuple[str, str]] = {}
    for part in reversed(config_class.__mro__):
        section = _ARGS.search(inspect.getdoc(part) or "")
        if part is object or section is None:
            continue
        for names, unit, text in _FIELD.findall(section.group(1)):
            for name in names.split(","):
                found[name.strip()] = (unit, _sentence(text))
    return found


def _sentence(text: str) -> str:
    """Without marks of code, and with a capital unless it begins with a name."""
    plain = " ".join(text.replace("``", "").split())
    return plain if text.startswith("``") else plain[:1].upper() + plain[1:]


def written(value: Any) -> str:
    """A value as it is written on the command line.

    Example:
        >>> written(None), written(True), written("???"), written([1, 2])
        ('null', 'true', '(must be set)', '[1,2]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {written(one)}" for key, one in value.items()) + "}"
    return "(must be set)" if value == "???" else str(value)

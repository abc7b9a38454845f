"""Rules for config fields; every message starts with the key as it is written on the command line."""

import dataclasses
import difflib
import math
import numbers
from typing import Any, ClassVar, Dict, Iterable, Optional, Sequence, Type

__all__ = ["ConfigError", "Fields", "config_error", "known_fields", "nearest", "rules_of"]


class ConfigError(ValueError):
    """A config value that breaks a rule; the message starts with the key, e.g. ``encoder.num_heads``."""


def config_error(key: str, rule: str, got: Any, hint: str = "") -> ConfigError:
    """The error for one key.

    Args:
        key: dotted path of the value, e.g. ``"encoder.num_heads"``.
        rule: what must hold, worded to follow the key.
        got: the value that was given; shown with ``repr``.
        hint: the way out, if there is more to say than the rule.

    Example:
        >>> str(config_error("encoder.num_heads", "must be an integer from 1 to 4", 9, "use 4"))
        'encoder.num_heads must be an integer from 1 to 4; got 9; use 4'
    """
    text = f"{key} {rule}; got {_show(got)}"
    return ConfigError(f"{text}; {hint}" if hint else text)


def nearest(name: Any, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"``, or an empty string when nothing is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def known_fields(config: Any, prefix: str = "") -> Any:
    """The config itself, if it holds no fields but those of its classes: Hydra adds ``+encoder.x=1`` to any of them.

    Args:
        config: a dataclass instance, with such instances inside.
        prefix: where it sits in the whole config.

    Raises:
        ConfigError: a field that nothing would read.

    Example:
        >>> from cfg.trainer import TrainerConfig
        >>> known_fields(TrainerConfig()).max_epochs > 0
        True
    """
    known = [field.name for field in dataclasses.fields(config)]
    for name, value in vars(config).items():
        key = f"{prefix}.{name}" if prefix else name
        if name not in known:
            raise config_error(key, "must be a setting that exists", value, nearest(name, known))
        if dataclasses.is_dataclass(value):
            known_fields(value, key)
    return config


def rules_of(config_class: Type[Any], **given: Any) -> Dict[str, str]:
    """What each field of a config must be, by name, in the words of its errors: the checks themselves say it.

    Args:
        config_class: to be made, with its defaults.
        given: values of fields that have none.

    Example:
        >>> from cfg.trainer import TrainerConfig
        >>> rules_of(TrainerConfig)["max_epochs"]
        'an integer from 1 to 1048576 or null'
    """
    needed = {field.name: "x" for field in dataclasses.fields(config_class)
              if field.default == "???" and field.name != "name"}
    before, Fields.noted = Fields.noted, {}
    try:
        config_class(**{**needed, **given})
        return Fields.noted
    finally:
        Fields.noted = before


class Fields:
    """Checks the fields of one config object and stores them back in their plain type.

    Args:
        owner: the dataclass instance, usually ``self`` inside ``__post_init__``.
        prefix: where it sits in the whole config, e.g. ``"encoder"``.

    Example:
        >>> from types import SimpleNamespace
        >>> job = SimpleNamespace(epochs=3)
        >>> Fields(job, "job").integer("epochs", 1, 100)
        3
    """

    #: Rules by field, while `rules_of` asks for them.
    noted: ClassVar[Optional[Dict[str, str]]] = None

    def __init__(self, owner: Any, prefix: str) -> None:
        self.owner, self.prefix = owner, prefix

    def integer(self, name: str, low: int, high: int, optional: bool = False) -> Any:
        """An integer from ``low`` to ``high``; ``None`` passes if ``optional``. A bool is not an integer."""
        rule = self.rule(name, f"an integer from {low} to {high}{' or null' if optional else ''}")
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
            raise self.error(name, rule, value)
        return self._store(name, int(value))

    def number(self, name: str, low: float, high: float, open_low: bool = False, open_high: bool = False,
               optional: bool = False) -> Any:
        """A finite number in the interval; an open end is itself refused; ``None`` passes if ``optional``."""
        ends = f"{'above' if open_low else 'from'} {low:g} {'and below' if open_high else 'to'} {high:g}"
        rule = self.rule(name, f"a finite number {ends}{' or null' if optional else ''}")
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        number = _finite(value)
        inside = number is not None and low <= number <= high
        if not inside or (open_low and number == low) or (open_high and number == high):
            raise self.error(name, rule, value)
        return self._store(name, number)

    def flag(self, name: str, optional: bool = False) -> Any:
        """True or False, nothing that merely looks like it; ``None`` passes if ``optional``."""
        rule = self.rule(name, "true or false" + (" or null" if optional else ""))
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        if not isinstance(value, bool):
            raise self.error(name, rule, value)
        return value

    def choice(self, name: str, choices: Sequence[str], optional: bool = False) -> Any:
        """One of the listed words; ``None`` passes if ``optional``."""
        rule = self.rule(name, "one of " + ", ".join(choices) + (" or null" if optional else ""))
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, rule, value, nearest(value, choices))
        return value

    def text(self, name: str, optional: bool = False) -> Any:
        """A non-empty string; ``None`` passes if ``optional``. OmegaConf's ``???`` (missing) does not."""
        rule = self.rule(name, "a non-empty string" + (" or null" if optional else ""))
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        if not isinstance(value, str) or not value.strip() or value == "???":
            raise self.error(name, rule, value)
        return value

    def names(self, name: str) -> Any:
        """A list of different non-empty strings, which may be empty."""
        rule, value = self.rule(name, "a list of different names"), getattr(self.owner, name)
        fine = isinstance(value, (list, tuple)) and all(isinstance(one, str) and one for one in value)
        if not fine or len(set(value)) < len(value):
            raise self.error(name, rule, value)
        return self._store(name, list(value))

    def rule(self, name: str, words: str) -> str:
        """``must be `` and the words; `rules_of` then knows them, for a field that is checked by hand as well."""
        if Fields.noted is not None:
            Fields.noted.setdefault(name, words)
        return f"must be {words}"

    def error(self, name: str, rule: str, got: Any, hint: str = "") -> ConfigError:
        """The error for field ``name``, with the prefix in front."""
        return config_error(f"{self.prefix}.{name}", rule, got, hint)

    def _store(self, name: str, value: Any) -> Any:
        setattr(self.owner, name, value)
        return value


def _finite(value: Any) -> Optional[float]:
    """The value as a float, or None where it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return number if math.isfinite(number) else None


def _show(value: Any) -> str:
    try:
        shown = repr(value)
    except Exception:  # a repr that raises must not hide the config error
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= 120 else shown[:117] + "..."

"""Rules for config fields; every message starts with the key as it is written on the command line."""

import dataclasses
import difflib
import math
import numbers
from typing import Any, Iterable, Optional, Sequence

__all__ = ["ConfigError", "Fields", "config_error", "known_fields", "nearest"]


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

    def __init__(self, owner: Any, prefix: str) -> None:
        self.owner, self.prefix = owner, prefix

    def integer(self, name: str, low: int, high: int, optional: bool = False) -> Any:
        """An integer from ``low`` to ``high``; ``None`` passes if ``optional``. A bool is not an integer."""
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
            raise self.error(name, f"must be an integer from {low} to {high}{' or null' if optional else ''}", value)
        return self._store(name, int(value))

    def number(self, name: str, low: float, high: float, open_low: bool = False, open_high: bool = False) -> float:
        """A finite number in the interval; an open end is itself refused."""
        value = getattr(self.owner, name)
        number = _finite(value)
        inside = number is not None and low <= number <= high
        if not inside or (open_low and number == low) or (open_high and number == high):
            ends = f"{'above' if open_low else 'from'} {low:g} {'and below' if open_high else 'to'} {high:g}"
            raise self.error(name, f"must be a finite number {ends}", value)
        return self._store(name, number)

    def flag(self, name: str) -> bool:
        """True or False, nothing that merely looks like it."""
        value = getattr(self.owner, name)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false", value)
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of the listed words."""
        value = getattr(self.owner, name)
        if not isinstance(value, str) or value not in choices:
            raise self.error(name, "must be one of " + ", ".join(choices), value, nearest(value, choices))
        return value

    def text(self, name: str, optional: bool = False) -> Any:
        """A non-empty string; ``None`` passes if ``optional``. OmegaConf's ``???`` (missing) does not."""
        value = getattr(self.owner, name)
        if value is None and optional:
            return None
        if not isinstance(value, str) or not value.strip() or value == "???":
            raise self.error(name, "must be a non-empty string" + (" or null" if optional else ""), value)
        return value

    def names(self, name: str) -> Any:
        """A list of different non-empty strings, which may be empty."""
        value = getattr(self.owner, name)
        fine = isinstance(value, (list, tuple)) and all(isinstance(one, str) and one for one in value)
        if not fine or len(set(value)) < len(value):
            raise self.error(name, "must be a list of different names", value)
        return self._store(name, list(value))

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

"""Error messages in one form: who, which field, the rule, the value, what to do."""

import difflib
from typing import Any, Iterable, Mapping, Sequence


class CacheError(ValueError):
    """A cache that does not belong to the module, batch or layout it is used with."""


class CheckpointError(ValueError):
    """A file of weights that is missing, damaged, foreign or unsafe."""


class BackendError(ValueError):
    """A backend that is unknown, or cannot do what was asked of it.

    Example:
        >>> from myfla.backends import check_backend
        >>> try:
        ...     check_backend("layer", "troch")
        ... except BackendError as error:
        ...     print(error)
        layer: backend must be one of auto, naive, torch, native, compiled, fla; got 'troch'; did you mean 'torch'?
    """


def value_error(who: str, field: str, rule: str, got: Any, hint: str = "") -> ValueError:
    """The `ValueError` for an argument that breaks a rule.

    Args:
        who: the function or class that was called, e.g. ``"GatedDeltaNet"``.
        field: the argument's name.
        rule: what must hold, worded to follow the name, e.g. ``"must be a multiple of num_heads=2"``.
        got: the value that was given; shown with ``repr``.
        hint: the way out, if there is more to say than the rule.

    Example:
        >>> str(value_error("GatedDeltaNet", "num_v_heads", "must be a multiple of num_heads=2", 3, "use 2 or 4"))
        'GatedDeltaNet: num_v_heads must be a multiple of num_heads=2; got 3; use 2 or 4'
    """
    return ValueError(message(who, field, rule, got, hint))


def message(who: str, field: str, rule: str, got: Any, hint: str = "") -> str:
    """The text of `value_error`, for errors of another class."""
    text = f"{who}: {field} {rule}; got {got!r}"
    return f"{text}; {hint}" if hint else text


def nearest(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'x'?"``, or an empty string when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def unknown_keyword(who: str, name: str, known: Sequence[str]) -> TypeError:
    """The `TypeError` for an unknown keyword; names the nearest valid one."""
    hint = nearest(name, known) or "known: " + ", ".join(known)
    return TypeError(f"{who}: unknown keyword {name!r}; {hint}")


def refuse_unknown(who: str, given: Mapping[str, Any], known: Sequence[str], inert: Sequence[str] = ()) -> None:
    """Raise for the first keyword of ``given`` that is not in the written list ``inert``.

    Args:
        who: the caller.
        given: what ``**kwargs`` caught.
        known: the caller's named arguments, for the suggestion.
        inert: official names that are accepted and change nothing here.
    """
    for name in given:
        if name not in inert:
            raise unknown_keyword(who, name, [*known, *inert])

"""Error messages in one form: the caller, the field, the rule, the value, and what to do."""

import difflib
from typing import Any, Iterable, Mapping, Sequence


class CacheError(ValueError):
    """A cache that does not belong to the module, batch or layout it is used with."""


class CheckpointError(ValueError):
    """A file of weights that is missing, damaged, foreign or unsafe."""


class BackendError(ValueError):
    """A backend that is unknown, or that cannot compute a call.

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
        hint: what to do, if the rule does not say it.

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
    """``"did you mean 'x'?"``, or an empty string if no name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def unknown_keyword(who: str, name: str, known: Sequence[str]) -> TypeError:
    """The `TypeError` for an unknown keyword; it names the most similar valid one."""
    hint = nearest(name, known) or "known: " + ", ".join(known)
    return TypeError(f"{who}: unknown keyword {name!r}; {hint}")


def refuse_unknown(who: str, given: Mapping[str, Any], known: Sequence[str], inert: Sequence[str] = ()) -> None:
    """Raise an error for the first keyword of ``given`` that is not in ``inert``.

    Args:
        who: the caller.
        given: the keywords in ``**kwargs``.
        known: the caller's named arguments, for the suggestion.
        inert: official names that are accepted and change nothing here.
    """
    for name in given:
        if name not in inert:
            raise unknown_keyword(who, name, [*known, *inert])

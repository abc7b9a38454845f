"""The columns that a model was trained on, and finding them by name in other data."""

from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from cfg.validation import nearest
from encoders.errors import InputError

__all__ = ["Column", "InputSchema"]

ROW_NUMBERS = ("", "Unnamed: 0", "__index_level_0__")
"""Names that pandas gives to an index that it writes as a column."""
_SHOWN = 12


class Column(NamedTuple):
    """One column of a table, or one channel.

    Attributes:
        name: its name in the header.
        type: its type in the file's format, e.g. ``double`` or ``timestamp[us]``; for a time column its unit.
        reason: why it is left out, in words; "" if it is used.
    """

    name: str
    type: str = "number"
    reason: str = ""


@dataclass(frozen=True)
class InputSchema:
    """The columns that a model reads, and the others of the table that it was trained on.

    Attributes:
        features: the columns that it reads, in order.
        named: False if the data have no names (`.ts` files, arrays): features are then ``channel_1``, ..., and other
            data are matched by position.
        time: the column that orders the steps.
        left_out: columns that are not inputs, each with its reason.
        roles: ``(role, column)`` of the columns with a special meaning: ``sequence``, ``label``, ``target``, ``group``.
        steps: for a table with one row for each sequence, the columns of its steps.

    Example:
        >>> schema = InputSchema((Column("a"), Column("b")), left_out=(Column("note", "string", "text"),))
        >>> schema.describe()
        '2 features: a, b; left out: note (text)'
        >>> schema.match(["note", "b", "a"], "my.csv")
        [2, 1]
    """

    features: Tuple[Column, ...]
    named: bool = True
    time: Optional[Column] = None
    left_out: Tuple[Column, ...] = ()
    roles: Tuple[Tuple[str, str], ...] = ()
    steps: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) < len(names):
            raise InputError(f"InputSchema: features must be different names, one or more; got {names}")

    @classmethod
    def unnamed(cls, width: int) -> "InputSchema":
        """The schema of ``width`` channels without names.

        Example:
            >>> InputSchema.unnamed(2).names
            ['channel_1', 'channel_2']
        """
        return cls(tuple(Column(f"channel_{i + 1}") for i in range(width)), named=False)

    @property
    def names(self) -> List[str]:
        """Names of the features, in order."""
        return [column.name for column in self.features]

    @property
    def others(self) -> FrozenSet[str]:
        """Columns that are skipped without a message: other columns of the training table, and pandas' row numbers."""
        time = [] if self.time is None else [self.time.name]
        return frozenset([*ROW_NUMBERS, *time, *(column.name for column in self.left_out), *(n for _, n in self.roles)])

    def describe(self) -> str:
        """One line of text: the columns that are read, the column that orders them, and the others with the reason."""
        what = "feature" if self.named else "channel"
        text = f"{len(self.features)} {what}{'' if len(self.features) == 1 else 's'}"
        if self.named:
            text += ": " + _few(self.names)
        if self.steps:
            text += f", {len(self.steps)} steps: " + _few(self.steps)
        if self.time is not None:
            text += f"; time: {self.time.name} ({self.time.type})"
        if self.left_out:
            text += "; left out: " + _few([
                f"{column.name or '(no name)'} ({column.reason})" for column in self.left_out])
        return text

    def match(self, names: Sequence[str], who: str, ignore: Sequence[str] = (), option: str = "ignore") -> List[int]:
        """Find the features among the columns of other data.

        Columns that the training table had besides its features, and pandas' row numbers, are skipped. A model without
        names (`named`) takes the remaining columns by position, unless all its ``channel_N`` exist.

        Args:
            names: names of the columns, in order.
            who: their source, for messages: a file, an argument.
            ignore: further columns to skip.
            option: the setting or argument of ``ignore``, for messages.

        Returns:
            One position for each feature.

        Raises:
            InputError: a name is missing, unknown or occurs twice.

        Example:
            >>> InputSchema((Column("a"), Column("b"))).match(["a", "c"], "my.csv")
            Traceback (most recent call last):
              ...
            encoders.errors.InputError: my.csv: columns must be the model's 2 features: a, b; got no 'b', and unknown \
'c'; rename them, or skip what is not a feature with ignore=[c]
        """
        known, wanted = self.others.union(ignore), self.names
        twice = sorted({name for name in names if name in wanted and list(names).count(name) > 1})
        if twice:
            raise InputError(f"{who}: columns must have different names; got {twice[0]!r} twice; rename one of them")
        missing = [name for name in wanted if name not in names]
        extra = [name for name in names if name not in wanted and name not in known]
        if not self.named and missing:
            if len(extra) == len(wanted):
                return [list(names).index(name) for name in extra]
            raise InputError(f"{who}: columns must be {len(wanted)}, as the model reads; got {len(extra)}: "
                             f"{_few(extra)}; skip what is not a feature with {option}=[...]")
        if missing or extra:
            raise InputError(f"{who}: columns must be the model's {len(wanted)} features: {_few(wanted)}; got "
                             f"{_difference(missing, extra)}; {_remedy(missing, extra, option)}")
        return [list(names).index(name) for name in wanted]

    def match_steps(self, names: Sequence[str], who: str, ignore: Sequence[str] = (), option: str = "ignore"
                    ) -> List[str]:
        """Find the steps among the columns of another table with one row per sequence, in order.

        Steps that are numbered (``t0``, ``t1``, ...) may be fewer or more than the model was trained on; those up to
        the last one of the shorter table must be the same. Without numbers all must be there.

        Args:
            names, who, ignore, option: as in `match`.

        Raises:
            InputError: a step is missing, or a column unknown.

        Example:
            >>> schema = InputSchema((Column("value"),), named=False, steps=("t0", "t1"))
            >>> schema.match_steps(["t1", "t2", "t0"], "my.csv")
            ['t0', 't1', 't2']
        """
        known = self.others.union(ignore)
        given = [name for name in names if name not in known or name in self.steps]
        numbers = _numbered(self.steps)
        found = {} if numbers is None else _numbered_as(self.steps[0], given)
        if numbers is None or not found:
            missing, extra = ([n for n in self.steps if n not in given], [n for n in given if n not in self.steps])
            found = dict.fromkeys(self.steps, 0)
        else:
            last = min(max(numbers.values()), max(found.values()))
            missing = [name for name, number in numbers.items() if number <= last and name not in found]
            extra = [name for name in given if name not in found or (found[name] <= last and name not in numbers)]
        if missing or extra:
            raise InputError(f"{who}: columns must be the model's {len(self.steps)} steps: {_few(self.steps)}; got "
                             f"{_difference(missing, extra)}; {_remedy(missing, extra, option)}")
        return sorted(found, key=lambda name: found[name])

    def facts(self) -> Dict[str, Any]:
        """For JSON."""
        return {"features": [column[:2] for column in self.features], "named": self.named,
                "time": None if self.time is None else self.time[:2],
                "left_out": [list(column) for column in self.left_out], "roles": [list(role) for role in self.roles],
                "steps": list(self.steps)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "InputSchema":
        """The schema of such `facts`. Raises InputError for anything else."""
        try:
            features, left_out = ([Column(*map(_text, column)) for column in facts[key]] for key in
                                  ("features", "left_out"))
            time = None if facts["time"] is None else Column(*map(_text, facts["time"]))
            roles = tuple((_text(role), _text(name)) for role, name in facts["roles"])
            steps = tuple(map(_text, facts["steps"]))
            return cls(tuple(features), facts["named"] is True, time, tuple(left_out), roles, steps)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(f"InputSchema: facts must be those that it wrote; got {problem!r}") from None


def _numbered(names: Sequence[str]) -> Optional[Dict[str, int]]:
    """The number at the end of each name, if the names are one word with different numbers; else None."""
    found = _numbered_as(names[0], names) if names else {}
    return found if found and len(set(found.values())) == len(names) else None


def _numbered_as(first: str, names: Sequence[str]) -> Dict[str, int]:
    """The number behind each of those names that are one word and a number, as the first is."""
    word = first.rstrip("0123456789")
    return {name: int(name[len(word) :]) for name in names
            if name.startswith(word) and name[len(word) :].isascii() and name[len(word) :].isdigit()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names) - _SHOWN} more)"


def _difference(missing: List[str], extra: List[str]) -> str:
    parts = []
    for word, names in (("no", missing), ("unknown", extra)):
        if names:
            parts.append(f"{word} " + ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else ""))
    return ", and ".join(parts)


def _remedy(missing: List[str], extra: List[str], option: str) -> str:
    near = nearest(missing[0], extra) if missing and extra else ""
    over = f"skip what is not a feature with {option}=[{', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''}]"
    if near:
        return f"{missing[0]!r}: {near}"
    if missing:
        return f"rename them, or {over}" if extra else "add them, or rename the columns"
    return over

"""Decides which columns of a table are inputs, and why the others are not."""

import re
from collections import Counter
from typing import Dict, List, Sequence, Tuple

from app.data.tables.facts import EMPTY, LISTS, NUMBER, ODD, Fact
from app.data.tables.natural import natural
from app.data.tables.table import Table, named_columns
from app.errors import data_error
from cfg.data import TableDataConfig
from cfg.validation import config_error, nearest

__all__ = ["Choice", "check_columns", "check_numbers", "choose_features"]

#: The features in order, and for every other column that the config does not name, the reason.
Choice = Tuple[List[str], Dict[str, str]]

_COUNTED = re.compile("(.*?)([0-9]+)")


def choose_features(table: Table, config: TableDataConfig) -> Choice:
    """The columns that the config names, in its order; without them, all that fit the layout, in natural order of their
    names, so that the order of a file's columns does not matter.

    Raises:
        DataError: a named column is empty, or has numbers with two readings.
        ConfigError: no column is left.
    """
    check_numbers(table, config, ())
    named = {name for _, name in named_columns(config)}
    rest = {name: fact for name, fact in table.facts.items() if name not in named}
    if config.features is not None:
        check_numbers(table, config, config.features)
        for name in config.features:
            if table.facts[name].kind == EMPTY:
                raise data_error(table.path, f"column {name!r}", "must have a value somewhere", "only empty cells",
                                 "leave it out of data.features")
        return list(config.features), {name: fact.why or "not in data.features" for name, fact in rest.items()}
    wanted = LISTS if config.arranged == "lists" else NUMBER
    fits = sorted((name for name, fact in rest.items() if fact.kind == wanted), key=natural)
    if config.arranged == "wide":
        fits = _steps(fits, list(rest), table.path)
    if not fits:
        raise _none(table, config, rest)
    other = {LISTS: "one value a row", NUMBER: "no step"}[wanted]
    if wanted == NUMBER and config.arranged == "long":
        other = "lists"
    return fits, {name: fact.why or other for name, fact in rest.items() if name not in fits}


def check_columns(table: Table, names: Sequence[str]) -> None:
    """Refuse a table that lacks a feature.

    Raises:
        DataError: the message names the feature.
    """
    for name in names:
        if name not in table.facts:
            known = [known for known in table.facts if known]
            raise data_error(table.path, "columns", "must be those of the training table", f"no {name!r}",
                             nearest(name, known) or "it has " + ", ".join(known[:20]))


def check_numbers(table: Table, config: TableDataConfig, features: Sequence[str]) -> None:
    """Refuse features, targets and times whose numbers have two readings, and features and targets that are numbers in
    one file but not in another.

    Raises:
        DataError: the message names the column.
    """
    time = [] if config.time is None or table.facts[config.time].type != "text" else [config.time]
    for name in (*features, *(config.targets or ()), *time):
        fact = table.facts[name]
        if fact.kind == ODD and fact.odd is None:
            raise data_error(table.path, f"column {name!r}", "must hold numbers of one kind", fact.why)


def _steps(fits: List[str], names: List[str], path: str) -> List[str]:
    """The step columns of a wide table: those named by one word and a number, in the order of the numbers, if there are
    any; otherwise all, in the order of the file.

    Raises:
        ConfigError: two words have equally many columns.
    """
    words = {name: match.group(1) for name, match in ((name, _COUNTED.fullmatch(name)) for name in fits) if match}
    counts = Counter(words.values())
    most = max(counts.values(), default=0)
    if most < 2:
        return [name for name in names if name in fits]
    chosen = sorted(word for word, count in counts.items() if count == most)
    if len(chosen) > 1:
        raise config_error("data.features", f"must name the steps of {path}, which has several series of numbered "
                           "columns", None, f"they begin with {', '.join(map(repr, chosen[:8]))}; a row is one series: "
                           "for several channels use one row a step, or lists")
    return [name for name in fits if words.get(name) == chosen[0]]


def _none(table: Table, config: TableDataConfig, rest: Dict[str, Fact]) -> Exception:
    found = ", ".join(f"{name} ({fact.why})" for name, fact in rest.items() if fact.why)
    if config.arranged == "lists" and any(fact.kind == NUMBER for fact in rest.values()):
        return config_error("data.sequence", f"must name the column that says which rows of {table.path} belong "
                            "together", None, "or set data.layout=wide for one row a sequence and one column a step, "
                            "or data.window=STEPS to cut one long recording; there are no columns of lists")
    return config_error("data.features", f"must name columns of {table.path}, which has no column of numbers left",
                        None, f"left out: {found}" if found else "")

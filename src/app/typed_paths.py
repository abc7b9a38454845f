"""Paths as people type them: in Hydra's grammar spaces, ``=``, ``(``, ``~``, ``#`` and others have a special
meaning."""

import os
import re
from typing import List, Sequence

__all__ = ["plain_paths"]

_KEYS = ("data.train_path", "data.test_path", "data.scratch", "data.tokenizer", "job.input", "job.output", "job.state",
         "run", "encoder.pretrained", "hydra.run.dir", "hydra.sweep.dir")
_NAMES = ("data.sequence", "data.time", "data.label", "data.group", "job.session")
_PATH = re.compile(r"(\+{0,2}(?:" + "|".join(map(re.escape, _KEYS + _NAMES)) + r")=)(.+)", re.DOTALL)


def plain_paths(arguments: Sequence[str]) -> List[str]:
    """Command-line arguments in which paths and names of columns are quoted if Hydra could not read them as typed, or
    if such a path exists.

    Everything else, such as lists for sweeps and quoted values, is unchanged. ``~`` at the start is the home folder.

    Args:
        arguments: of the command line.

    Example:
        >>> plain_paths(["data.train_path=no such (1) #2.csv", "seed=1,2"])
        ["data.train_path='no such (1) #2.csv'", 'seed=1,2']
    """
    return [_plain(argument) for argument in arguments]


def _plain(argument: str) -> str:
    match = _PATH.fullmatch(argument)
    if match is None or match.group(2) == "null":
        return argument
    key, path = match.groups()
    is_path = key.lstrip("+")[:-1] in _KEYS
    if is_path and path.startswith("~") and not os.path.exists(path):
        path = os.path.expanduser(path)
    if not (is_path and os.path.exists(path)) and _is_grammar(key + path):
        return key + path
    return f"{key}'{_escaped(path)}'"


def _is_grammar(argument: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _escaped(path: str) -> str:
    """For single quotes: a quote, and the backslashes before it or the end, get a backslash each; so does ``${``."""
    path = path.replace("${", "\\${")
    path = re.sub(r"(\\*)'", lambda found: found.group(1) * 2 + "\\'", path)
    return re.sub(r"(\\+)$", lambda found: found.group(1) * 2, path)

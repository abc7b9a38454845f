"""Errors of Hydra and OmegaConf about a command line in other words: which key is wrong, and what to do."""

import re
from typing import Any, Dict, List, Sequence

from cfg.hydra_versions import version_base
from cfg.validation import nearest

__all__ = ["explain", "flat_keys"]

_KINDS = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false", "bool": "true or false",
          "String": "text"}
MOST = 16
_MISSING = {"data.train_path": "it names the file, or the folder, with the data to train on",
            "job.output": "it names the folder for the embeddings"}


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One line for an error that was raised while the config was composed.

    Args:
        error: an error of Hydra or OmegaConf.
        arguments: of the command line, without the program's name.
    """
    text, cause = str(error), str(error.__cause__ or "")
    for pattern, words in (
        (r"Could not override '([^']*)'", _unknown),
        (r"Could not find '([^']*)'", _option),
        (r"Error merging override (.*)", _value),
        (r"missing mandatory value: (\S+)", _missing),
        (r"Error parsing override '(.*)'", _grammar),
        (r"Ambiguous value for argument '(.*?)'", _several),
        (r"^Lexer.*|^(?:mismatched|extraneous)", _lexer),
        (r"Multiple values for (\S+)\.|Could not append to config.*'([^']*)'", _twice),
    ):
        found = re.search(pattern, text)
        if found:
            return words(found.group(1) if found.groups() else "", text + "\n" + cause, arguments)
    return (text or type(error).__name__).strip().splitlines()[0]


def flat_keys(values: Any, prefix: str = "") -> List[str]:
    """Every dotted key of a nested mapping, groups included.

    Example:
        >>> flat_keys({"encoder": {"name": "gru"}, "seed": 0})
        ['encoder', 'encoder.name', 'seed']
    """
    found: List[str] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        found.append(key)
        if isinstance(value, dict) and value:
            found += flat_keys(value, f"{key}.")
    return found


def _unknown(key: str, text: str, arguments: Sequence[str]) -> str:
    given = next((a for a in arguments if a.lstrip("+~").startswith(key)), key)
    known = flat_keys(_composed(arguments))
    group, _, name = key.rpartition(".")
    beside = [k for k in known if k.rpartition(".")[0] == group]
    close = [k for k in beside if nearest(name, [k.rpartition(".")[2]])]
    same = [k for k in known if k.rpartition(".")[2] == name]
    if close:
        hint = nearest(key, close)
    elif same:
        hint = f"did you mean {same[0]!r}?"
    elif group and beside:
        hint = _listed(group, [k.rpartition(".")[2] for k in beside])
    else:
        hint = nearest(key, known) or "--help lists all settings"
    return f"{key} must be a setting that exists; got {given!r}; {hint}"


def _listed(group: str, names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > MOST else ""
    return f"{group} has {', '.join(names[:MOST])}{more}"


def _option(place: str, text: str, arguments: Sequence[str]) -> str:
    group, _, option = place.rpartition("/")
    options = re.findall(r"^\t(\S+)", text.partition("Available options")[2].partition("Config search path")[0], re.M)
    options = [name for name in options if name != "schema"]
    hint = nearest(option, options)
    if not options:
        return f"{group or option} must be a group of the config; got {place!r}"
    return f"{group} must be one of {', '.join(options)}; got {option!r}" + (f"; {hint}" if hint else "")


def _value(override: str, text: str, arguments: Sequence[str]) -> str:
    key, _, value = override.lstrip("+~").partition("=")
    kind = re.search(r"could not be converted to (\w+)|is not a valid (\w+)", text)
    if kind:
        name = kind.group(1) or kind.group(2)
        return f"{key} must be {_KINDS.get(name, name)}; got {value!r}"
    if "is not Optional" in text:
        return f"{key} must not be null; got {value!r}"
    return f"{key} must be a value of its kind; got {value!r}; {text.splitlines()[1]}"


def _missing(name: str, text: str, arguments: Sequence[str]) -> str:
    found = re.search(r"full_key: (\S+)", text)
    key = found.group(1) if found else name
    about = _MISSING.get(key, "it has no default")
    return f"{key} must be set: {about}; e.g. {key}={'PATH' if key in _MISSING else 'VALUE'}"


def _several(override: str, text: str, arguments: Sequence[str]) -> str:
    key, _, value = override.partition("=")
    return (f"{key} must be one value; got {value!r}; for a sweep over several say -m too, for a list write "
            f"{key}=[{value}]")


def _grammar(override: str, text: str, arguments: Sequence[str]) -> str:
    if "=" not in override:
        return f"{override!r} must be a setting, written key=value; --help lists them"
    key, _, value = override.partition("=")
    quoted = value.replace("'", "\\'")
    return f"""{key} must be a value in Hydra's grammar; got {value!r}; put it into quotes: "{key}='{quoted}'\""""


def _lexer(_: str, text: str, arguments: Sequence[str]) -> str:
    rest = re.match(r"\w+: (.*)", text)
    hit = next((a for a in arguments if rest and rest.group(1).strip() in a), "")
    return _grammar(hit or (rest.group(1) if rest else text.splitlines()[0]), text, arguments)


def _twice(key: str, text: str, arguments: Sequence[str]) -> str:
    return f"{key} must be given once; got it again with '+'; write {key}=..., without the plus"


def _composed(arguments: Sequence[str]) -> Dict[str, Any]:
    """The config without the settings, with those choices of groups that exist."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from cfg.paths import conf_dir

    groups = [a.split(",")[0] for a in arguments if re.match(r"[a-z_]+=[A-Za-z0-9_,]+\Z", a)]
    for chosen in (groups, []):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir()), **version_base()):
            try:
                found = OmegaConf.to_container(compose("config", chosen, return_hydra_config=True), resolve=False)
            except Exception:  # another error on the same command line, which will be reported next
                continue
        if isinstance(found, dict):
            return {str(key): value for key, value in found.items()}
    return {}

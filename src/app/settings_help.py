"""``--help GROUP``: the choices of a config group, or every setting of one choice with its meaning."""

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from app.settings_table import settings_of, written
from cfg.app import GROUPS
from cfg.encoder import ENCODER_CONFIGS
from cfg.hydra_versions import version_base
from cfg.paths import conf_dir
from cfg.validation import ConfigError, nearest

__all__ = ["group_help"]

WIDTH = 110


def group_help(arguments: Sequence[str]) -> Optional[str]:
    """The text that ``--help encoder`` or ``--help encoder=rwkv7`` shows; None if no group is named.

    Args:
        arguments: of the command line.

    Raises:
        ConfigError: no such group, or no such choice of it.
    """
    if not {"--help", "-h"} & set(arguments):
        return None
    asked = [argument for argument in arguments if not argument.startswith("-")]
    if not asked:
        return None
    group, _, option = asked[0].partition("=")
    groups = _groups()
    if group not in groups:
        raise ConfigError(f"--help must be followed by nothing or by one of {', '.join(groups)}; got {group!r}"
                          + (f"; {nearest(group, groups)}" if nearest(group, groups) else ""))
    options = groups[group]
    if option and option not in options:
        raise ConfigError(f"{group} must be one of {', '.join(options)}; got {option!r}"
                          + (f"; {nearest(option, options)}" if nearest(option, options) else ""))
    lines = [f"{group}=NAME, one of:"]
    width = max(map(len, options)) + 2
    lines += [f"  {name.ljust(width)}{_purpose(group, name)}".rstrip() for name in options]
    shown = option or _default(group)
    settings = None if shown is None else _settings(group, shown)
    if settings is not None:
        lines += ["", f"Settings with {group}={shown} (key=default):", *settings]
    if shown != option and len(options) > 1:
        lines += ["", f"Settings of another choice: --help {group}=NAME"]
    return "\n".join(lines)


def _groups() -> Dict[str, List[str]]:
    """The options of every group: YAML files, and what plugins have registered."""
    from hydra.core.config_store import ConfigStore

    found: Dict[str, List[str]] = {}
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name != "hydra"):
        stored = ConfigStore.instance().repo.get(folder.name, {})
        plugins = [name[: -len(".yaml")] for name in stored if name.endswith(".yaml")]
        found[folder.name] = sorted({path.stem for path in folder.glob("*.yaml")} | set(plugins))
    return found


def _purpose(group: str, name: str) -> str:
    """What the comment at the top of a preset says about it; other lines of it are commands and a directive of
    Hydra."""
    path = Path(conf_dir()) / group / f"{name}.yaml"
    if not path.exists():
        return "from a plugin"
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    said = [line for line in comments if not line.startswith(("python", "torchrun", "@package"))]
    text = " ".join(said).split(" Fields")[0].split(". ")[0].rstrip(".")
    return _said(group, name) if text.startswith("Fields") or not text else text


def _said(group: str, name: str) -> str:
    """The first words of the docstring of a choice's class; "" if it has none."""
    kind = ENCODER_CONFIGS.get(name) if group == "encoder" else GROUPS.get(group, {}).get(name)
    first = (inspect.getdoc(kind) or "").split("\n\n")[0] if kind is not None else ""
    return re.split(r"[;(.]", " ".join(first.replace("`", "").split()))[0].strip()


def _default(group: str) -> Optional[str]:
    for line in (Path(conf_dir()) / "config.yaml").read_text(encoding="utf-8").splitlines():
        found = re.match(rf"\s+- {group}: (\w+)", line)
        if found:
            return None if found.group(1) == "null" else found.group(1)
    return None


def _settings(group: str, option: str) -> Optional[List[str]]:
    """The settings of a choice, with the values of the preset; None if it has no settings."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), **version_base()):
        node: Any = compose("config", [f"{group}={option}"]).get(group)
    kind = None if node is None else OmegaConf.get_type(node)
    if kind is None or not dataclasses.is_dataclass(kind):
        return None
    lines: List[str] = []
    plain = OmegaConf.to_container(node, resolve=False)
    values = {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}
    for setting in settings_of(kind):
        lines.append(f"  {group}.{setting.name}={written(values[setting.name])}")
        unit = f" In {setting.unit}." if setting.unit else ""
        text = f"{setting.meaning} Must be {setting.rule}.{unit}".strip()
        lines += textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return lines

"""The reference of all settings as a page, made from the config classes: ``docs/settings.md``."""

import dataclasses
from typing import Any, Dict, Iterable, List, Type

from app.settings_table import Setting, default_of, settings_of, written
from cfg.app import GROUPS, AppConfig
from cfg.check import CheckConfig
from cfg.data import DataConfig
from cfg.encoder import ENCODER_CONFIGS, EncoderConfig
from cfg.job import JobConfig
from cfg.logger import LoggerConfig

__all__ = ["all_settings", "settings_page"]

_HEAD = """# Settings

The defaults in these tables are those of the config classes in Python. On the command line, the presets in `conf/`
change some of them: encoders are bidirectional with a dropout of 0.2, and the settings that training [chooses from the
data](training.md#what-is-chosen-for-you) are null (`data.batch_size`, `data.validation_fraction`, `data.own_scale`,
`trainer.max_epochs`, `job.learning_rate`, `job.offset`, `job.mask`) or auto (`encoder.stem`). `python -m app
--help GROUP` and `--help GROUP=NAME` show the values of the presets. `make settings` makes this page from the classes
in `src/cfg`.
"""
_BASES: Dict[str, Type[Any]] = {"encoder": EncoderConfig, "data": DataConfig, "job": JobConfig, "logger": LoggerConfig}
_ORDER = ("encoder", "data", "job", "trainer", "callbacks", "logger")
_GROUP = "see its group below"


def settings_page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD, "## The run\n\n" + _table("", _of_run())]
    for group in _ORDER:
        classes, base = _classes(group), _BASES.get(group)
        if base is None:
            parts.append(f"## {group}\n\n" + _table(group, settings_of(next(iter(classes.values())))))
            continue
        shared = [s for s in settings_of(next(iter(classes.values()))) if s.owner is base]
        plain = {field.name: default_of(field) for field in dataclasses.fields(base)}
        shared = [s._replace(default=plain[s.name]) for s in shared]
        parts.append(f"## {group}\n\nWhatever is chosen with `{group}=NAME`:\n\n" + _table(group, shared))
        for name, kind in classes.items():
            own = [s for s in settings_of(kind) if s.owner is not base]
            own += [s for s in settings_of(kind) if s.owner is base and s.name != "name" and s.default != plain[s.name]]
            if own:
                parts.append(f"### {group}={name}\n\n" + _table(group, own))
    parts.append("## checks\n\nOf each item of the list `checks`, in the config of a sweep:\n\n"
                 + _table("checks", _of_checks()))
    return "\n".join(parts)


def all_settings() -> Dict[str, Setting]:
    """Every setting of every class, by ``Class.field``."""
    found = {f"AppConfig.{s.name}": s for s in _of_run()}
    found.update({f"CheckConfig.{s.name}": s for s in _of_checks()})
    for group in _ORDER:
        for kind in _classes(group).values():
            found.update({f"{kind.__name__}.{s.name}": s for s in settings_of(kind)})
    return found


def _classes(group: str) -> Dict[str, Type[object]]:
    return dict(ENCODER_CONFIGS) if group == "encoder" else dict(GROUPS[group])


def _of_run() -> List[Setting]:
    groups = {**dict.fromkeys(_ORDER, _GROUP), "checks": "a list of checks, see below"}
    return [s._replace(default="", rule=groups[s.name]) if s.name in groups else s for s in settings_of(AppConfig)]


def _of_checks() -> List[Setting]:
    found = settings_of(CheckConfig, metric="x", at_least=0.0)
    return [s._replace(rule="a mapping of settings to values") if s.name == "where" else s for s in found]


def _table(group: str, settings: Iterable[Setting]) -> str:
    rows = ["| key | default | must be | unit | meaning |", "|---|---|---|---|---|"]
    for s in settings:
        key = f"{group}.{s.name}" if group else s.name
        default = f"`{written(s.default)}`" if s.default != "" else ""
        cells = (f"`{key}`", default, s.rule, s.unit, s.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"

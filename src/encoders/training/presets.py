"""The application's presets, for training without the application: ``conf/GROUP/NAME.yaml`` as plain data."""

from typing import Any, Dict

from cfg.paths import conf_dir
from encoders.training.plain_yaml import read_plain_yaml

__all__ = ["preset"]


def preset(group: str, name: str) -> Dict[str, Any]:
    """The settings of a preset; empty if there is none of that name, as for a registered strategy.

    Example:
        >>> preset("callbacks", "all_epochs")["early_stopping"]
        False
    """
    path = conf_dir() / group / f"{name}.yaml"
    found = read_plain_yaml(path) if path.is_file() else {}
    return {key: value for key, value in found.items() if key not in ("defaults", "name")}

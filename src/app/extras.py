"""Launchers and sweepers that need an extra: reported before Hydra calls them unknown."""

from importlib.util import find_spec
from typing import Optional, Sequence

__all__ = ["missing_extra"]

_EXTRAS = (
    ("hydra/launcher=joblib", "hydra_joblib_launcher", "sweep"),
    ("hydra/launcher=submitit", "hydra_submitit_launcher", "slurm"),
    ("hydra/sweeper=optuna", "hydra_optuna_sweeper", "optuna"),
    ("hparams_search=optuna", "hydra_optuna_sweeper", "optuna"),
)


def missing_extra(arguments: Sequence[str]) -> Optional[str]:
    """What to say if the command line asks for something that is not installed; None if all is there.

    Example:
        >>> missing_extra(["encoder=rwkv7"]) is None
        True
    """
    for start, package, extra in _EXTRAS:
        for argument in arguments:
            if argument.startswith(start) and not _installed(package):
                return f"{argument} needs the package {package.replace('_', '-')!r}; pip install 'myfla[{extra}]'"
    return None


def _installed(package: str) -> bool:
    try:
        return find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # there is no plugin at all
        return False

"""Reports launchers and sweepers whose extra is missing, before Hydra calls them unknown."""

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
    """The error message if the command line needs an extra that is not installed; None if it does not.

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
    except ModuleNotFoundError:  # no plugin is installed
        return False

"""Jobs of the application, by the name in ``job.name``.

To add one: a module with ``run(config, folder) -> float``, a line in `JOBS`, a config class in `cfg.job` and a YAML
preset in ``conf/job``.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import RunError
from app.preflight import JOBS, check_start

if TYPE_CHECKING:
    from cfg.app import AppConfig

__all__ = ["JOBS", "run_job"]


def run_job(config: "AppConfig", folder: Path) -> float:
    """Run the job that ``config.job.name`` asks for.

    Args:
        config: the whole, checked config.
        folder: where everything is written.

    Returns:
        what a hyperparameter search minimises.

    Raises:
        ConfigError, DataError, RunError: see `app.preflight.check_start`, and the job.
    """
    check_start(config)
    name = config.job.name
    try:
        module = import_module(JOBS[name])
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("app", "cfg", "encoders", "myfla"):
            raise
        raise RunError(f"job {name!r} needs the package {error.name!r}; pip install 'myfla[app]'") from error
    return module.run(config, folder)

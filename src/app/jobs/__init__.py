"""Jobs of the application, by the name in ``job.name``.

To add one: a module with ``run(config, folder) -> float``, a line in `JOBS`, a config class in `cfg.job` and a YAML
preset in ``conf/job``.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from app.data.door import check_door
from app.errors import RunError
from cfg.validation import config_error, nearest

if TYPE_CHECKING:
    from cfg.app import AppConfig

__all__ = ["JOBS", "run_job"]

JOBS = {name: f"app.jobs.{name}" for name in ("train", "stream", "export", "describe", "bench", "evaluate",
                                                "encode", "predict")}


def run_job(config: "AppConfig", folder: Path) -> float:
    """Run the job that ``config.job.name`` asks for.

    Args:
        config: the whole, checked config.
        folder: where everything is written.

    Returns:
        what a hyperparameter search minimises.

    Raises:
        ConfigError: no such job.
        DataError: files that are missing, or have other columns than the config names; torch is not loaded before.
        RunError: a package that the job needs is not installed, or there is no such run.
    """
    name = config.job.name
    if name not in JOBS:
        raise config_error("job.name", f"must be one of {', '.join(JOBS)}", name, nearest(name, JOBS))
    if config.resume and name != "train":
        raise config_error("resume", f"must be false with job={name}", True, "only job=train goes on with a run so")
    check_door(config)
    try:
        module = import_module(JOBS[name])
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("app", "cfg", "encoders", "myfla"):
            raise
        raise RunError(f"job {name!r} needs the package {error.name!r}; pip install 'myfla[app]'") from error
    return module.run(config, folder)

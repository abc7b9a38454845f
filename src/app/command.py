"""The command line: compose the config, check it, run one job. Torch is imported only when a job starts."""

import logging
import math
import os
import sys
from pathlib import Path
from typing import List, Optional

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.errors import DataError, RunError
from app.explain import explain
from app.extras import missing_extra
from app.jobs import run_job
from app.run_folder import FAILURE, in_sweep, is_first_process, overrides, write_json
from app.settings_help import group_help
from app.start import Refused, leave_places
from app.sweep import START, TARGET, register_sweep_table
from app.typed_paths import plain_paths
from app.workplace import Workplace
from cfg.app import AppConfig, register_configs
from cfg.hydra_versions import hydra_main_options
from cfg.paths import conf_dir
from cfg.validation import ConfigError, known_fields
from encoders import register_plugin_configs
from encoders.errors import InputError, PluginError, UnknownEncoderError
from myfla import __version__
from myfla.utils.errors import BackendError, CheckpointError

__all__ = ["USER_ERRORS", "run_command"]

log = logging.getLogger(__name__)

USER_ERRORS = (BackendError, CheckpointError, ConfigError, DataError, InputError, OmegaConfBaseException, OSError,
               PluginError, RunError, UnknownEncoderError)
"""Errors that a user can correct, shown as one line; errors of the system (a full disk, no permission) are included."""
_RAW = "HYDRA_FULL_ERROR"


@hydra.main(config_path=str(conf_dir()), config_name="config", **hydra_main_options([START, TARGET]))
def _run(config: DictConfig) -> Optional[float]:
    folder, place = Path(HydraConfig.get().runtime.output_dir), None
    try:
        # The dataclasses check themselves here; all code below gets dataclasses, not a DictConfig.
        checked: AppConfig = known_fields(OmegaConf.to_object(config))
        if in_sweep() and is_first_process():
            place = Workplace(folder)
        return run_job(checked, folder)
    except Exception as error:
        if in_sweep():
            return _record_failure(error, folder, place is not None)
        if isinstance(error, USER_ERRORS):
            raise Refused(error) from error
        raise
    finally:
        if place is not None:
            place.leave()


def _record_failure(error: Exception, folder: Path, own: bool) -> float:
    """Store the reason for the table at the end of the sweep, which sets the exit code; the other jobs continue."""
    known = isinstance(error, USER_ERRORS)
    reason = f"{type(error).__name__}: {error}"
    log.error("job failed: %s", reason, exc_info=None if known else error)
    if own:  # otherwise the folder belongs to another run
        write_json({"overrides": overrides(), "error": reason}, folder / FAILURE)
    return math.inf  # the worst value for a search; NaN is not possible there


def run_command(arguments: List[str]) -> None:
    """Run a command line; an error of the user ends the process with a message.

    Args:
        arguments: without the program's name.
    """
    if "--version" in arguments:
        print(f"myfla {__version__}")
        return
    _check_streams()
    register_configs()
    register_plugin_configs()
    register_sweep_table()
    wanted_raw = os.environ.get(_RAW) == "1"
    logging.raiseExceptions = False  # a full disk is reported once, not with a traceback for every line of the log
    arguments = plain_paths(arguments)
    sys.argv[1:] = arguments  # Hydra reads them there, and so do the processes that Lightning starts
    try:
        shown = group_help(arguments)
        if shown is not None:
            print(shown)
            return
        problem = missing_extra(arguments)
        if problem is not None:
            raise RunError(problem)
        os.environ[_RAW] = "1"  # so that errors are raised here
        _run()
        sys.stdout.flush()
    except Refused as stop:
        if wanted_raw or not isinstance(stop.error, (*USER_ERRORS, HydraException)):
            raise stop.error from None
        _refuse(stop.error, arguments)
    except (*USER_ERRORS, HydraException) as error:
        if wanted_raw:
            raise
        _refuse(error, arguments)
    finally:
        leave_places()
        if not wanted_raw:
            os.environ.pop(_RAW, None)


def _check_streams() -> None:
    """Refuse a closed standard output: the next file that is opened would receive what is printed."""
    if sys.stderr is None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the process runs
    if sys.stdout is None:
        print("error: standard output must be open; got a closed one; use > /dev/null to drop it", file=sys.stderr)
        sys.exit(1)


def _refuse(error: Exception, arguments: List[str]) -> None:
    """One line on standard error, and exit code 1."""
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        text = explain(error, arguments)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename!r}" if error.filename is not None else "")
    else:
        text = str(error) or type(error).__name__
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # it is full or closed: Python must not try again on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        text = f"standard output: {text}"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)

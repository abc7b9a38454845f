"""``python -m app``: compose the config, check it, run one job. Torch is imported only when a job starts."""

import logging
import math
import sys
from pathlib import Path
from typing import Optional

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.errors import DataError, RunError
from app.extras import missing_extra
from app.jobs import run_job
from app.paths import conf_dir
from app.run_folder import FAILURE, check_shared, claim, in_sweep, is_first_process, overrides, write_json
from app.sweep import TARGET, register_sweep_table
from app.typed_paths import plain_paths
from cfg.app import register_configs
from cfg.hydra_versions import hydra_main_options
from cfg.validation import ConfigError, known_fields
from encoders import register_plugin_configs
from encoders.errors import InputError, PluginError, UnknownEncoderError
from myfla.utils.errors import BackendError, CheckpointError

__all__ = ["main"]

log = logging.getLogger(__name__)

USER_ERRORS = (BackendError, CheckpointError, ConfigError, DataError, InputError, OmegaConfBaseException, PluginError,
               RunError, UnknownEncoderError)


@hydra.main(config_path=str(conf_dir()), config_name="config", **hydra_main_options([TARGET]))
def _run(config: DictConfig) -> Optional[float]:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        # Dataclasses check themselves here; nothing below ever sees a DictConfig.
        config = known_fields(OmegaConf.to_object(config))
        if not config.resume:
            check_shared(config.trainer.devices * config.trainer.num_nodes)
            if is_first_process():
                claim(folder)
        return run_job(config, folder)
    except Exception as error:
        known = isinstance(error, USER_ERRORS)
        if in_sweep():
            return _record_failure(error, folder, known)
        if not known:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _record_failure(error: Exception, folder: Path, known: bool) -> float:
    """Leave the reason for the table at the end of the sweep, which sets the exit code, and let the siblings run."""
    reason = f"{type(error).__name__}: {error}"
    log.error("job failed: %s", reason, exc_info=None if known else error)
    write_json({"overrides": overrides(), "error": reason}, folder / FAILURE)
    return math.inf  # the worst that a search can find; it would trip over NaN


def main() -> None:
    """The command line; also the console script ``myfla``."""
    sys.argv[1:] = plain_paths(sys.argv[1:])
    problem = missing_extra(sys.argv[1:])
    if problem is not None:
        sys.exit(f"error: {problem}")
    register_configs()
    register_plugin_configs()
    register_sweep_table()
    _run()

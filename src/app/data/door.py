"""What can be said about files before torch is loaded: whether they are there, and what their headers say."""

from pathlib import Path

from app.errors import RunError, data_error
from app.run_folder import overrides
from cfg.app import AppConfig
from cfg.data import TableDataConfig, TextDataConfig, TsDataConfig

__all__ = ["check_door"]


def check_door(config: AppConfig) -> None:
    """Refuse a start whose files are missing, or lack a column.

    Raises:
        ConfigError, DataError, RunError: as reading them would.
    """
    lost = config.run is not None and not config.resume and not Path(config.run).is_dir()
    if lost and not any(override.lstrip("+~").startswith("encoder") for override in overrides()):  # the job says why
        raise RunError(f"run must be the folder of a finished run; got {config.run!r}, which is no folder")
    if config.job.name != "train" or config.resume or config.run is not None:
        return
    data = config.data
    for path in (getattr(data, "train_path", None), getattr(data, "test_path", None)):
        if path is None:
            continue
        if isinstance(data, TableDataConfig):
            from app.data.tables import check_table

            check_table(path, data)
        elif isinstance(data, TsDataConfig):
            from app.data.ts_header import read_header, read_lines

            read_header(Path(path), read_lines(Path(path)))
        elif isinstance(data, TextDataConfig) and not Path(path).exists():
            raise data_error("data", "path", "must be an existing file or folder", path)

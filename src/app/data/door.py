"""Checks of data files before torch is loaded: that they exist, and that their headers fit."""

from pathlib import Path

from app.errors import data_error
from cfg.app import AppConfig
from cfg.data import TableDataConfig, TextDataConfig, TsDataConfig

__all__ = ["check_door"]


def check_door(config: AppConfig) -> None:
    """Refuse a training if a file is missing or lacks a column.

    Raises:
        ConfigError, DataError: the same error that reading the files would raise.
    """
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

"""Data sources of the application, by the name in ``data.name``.

To add one: a module with ``load(config) -> SequenceData``, a line in `SOURCES`, a config class in `cfg.data` and a
YAML preset in ``conf/data``. The data module, not the source, splits, standardises and makes batches.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfg.data import DataConfig
    from encoders.training.data.sequences import SequenceData

__all__ = ["SOURCES", "load_data", "read_source"]

SOURCES = {"japanese_vowels": "app.data.japanese_vowels", "ts": "app.data.ts_files",
           "synthetic": "app.data.synthetic", "table": "app.data.table", "text": "app.data.text"}
CAN_CHOOSE = ("table",)
MAY_LACK_TARGETS = ("ts",)


def load_data(config: "DataConfig") -> "SequenceData":
    """Read the data that ``config.name`` asks for.

    Raises:
        DataError: unknown name, or data that is missing or damaged.
    """
    from app.errors import data_error
    from myfla.utils.errors import nearest

    if config.name not in SOURCES:
        hint = nearest(config.name, SOURCES)
        raise data_error("app", "data.name", f"must be one of {', '.join(SOURCES)}", config.name, hint)
    from app.data.check import checked

    return checked(read_source(config), config)


def read_source(config: "DataConfig", choose: Any = None, targets: bool = True) -> "SequenceData":
    """What the source of ``config.name`` reads; without `load_data`'s checks.

    Args:
        config: of the data.
        choose: ``choose(number of sequences)`` returns which of them are needed, ``[N]`` bool. Sources that can leave
            the others empty do not read them; other sources read all. targets: whether they are needed; if not, `.ts`
            files may have no labels (for a table, the config names none).
    """
    from app.data.paths import check_data_paths

    check_data_paths(config, missing=True)
    load = import_module(SOURCES[config.name]).load
    if choose is not None and config.name in CAN_CHOOSE:
        return load(config, choose)
    return load(config) if targets or config.name not in MAY_LACK_TARGETS else load(config, targets=False)

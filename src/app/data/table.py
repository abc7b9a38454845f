"""Your own CSV or Parquet tables: ``data=table data.train_path=A.parquet data.sequence=id data.label=class``.

Layouts: long (one row for each step; the rows of a sequence may be anywhere and are ordered by a time column), lists
(one row for each sequence, a list for each feature), wide (one row for each sequence, one column for each step), and
windows of long recordings. Rows are read block by block into one array of float64, which is a file if it is large, so
that the table may be larger than memory; about 40 bytes for each row stay in memory. A process that needs only some of
the sequences keeps only those, and of Parquet files reads only the row groups that contain them.
"""

import logging
from typing import Any, Callable, Dict, List, Optional

import numpy as np
import torch

from app.data.check import warn_shared
from app.data.class_names import class_name
from app.data.long_rows import check_written
from app.data.part import Part
from app.data.row_parts import read_lists, read_wide
from app.data.table_parts import read_long
from app.data.tables import Table, open_table
from app.data.tables.choose import check_columns, check_numbers, choose_features
from app.data.tables.natural import natural
from app.data.tables.table import named_columns
from app.data.views import Views
from cfg.data import TableDataConfig
from encoders.schema import Column, InputSchema
from encoders.training.data.sequences import IGNORE, SequenceData, SequenceSet

__all__ = ["load"]

log = logging.getLogger(__name__)

_READ = {"long": read_long, "lists": read_lists, "wide": read_wide}


def load(config: TableDataConfig, choose: Optional[Callable[[int], np.ndarray]] = None) -> SequenceData:
    """Read the files.

    Args:
        config: the files, and the meaning of their columns.
        choose: from the number of sequences to those that are needed, ``[N]`` bool; the others are left empty. For a
            file without labels and targets. None: all.

    Raises:
        DataError: a missing or damaged file, an unknown column, a value that is not a number, labels or groups that
            change within a sequence, or pyarrow is not installed (Parquet).
        ConfigError: settings that name columns the file does not have.
    """
    read = _READ[config.arranged]
    tables = [open_table(path, config) for path in (config.train_path, config.test_path) if path is not None]
    if len(tables) > 1:
        warn_shared(*([file.path for file in table.files] for table in tables))
    for note in dict.fromkeys(note for table in tables for note in table.notes()):
        log.warning("%s", note)
    features, left_out = choose_features(tables[0], config)
    first = read(tables[0], config, features, choose)
    for name, why in first.copies.items():
        if config.features is None:
            log.warning("%s: column %r is left out as a %s; to read it, list it in data.features", tables[0].path, name,
                        why)
            left_out[name] = why
        else:
            log.warning("%s: column %r is a %s", tables[0].path, name, why)
    for table in tables[1:]:
        check_columns(table, first.features)
        check_numbers(table, config, first.features)
    parts = [first, *(read(table, config, first.features, choose) for table in tables[1:])]
    classes = _classes(tables, config, parts) if config.label is not None else None
    groups = sorted({name for part in parts if part.groups is not None for name in part.group_names}, key=natural)
    sets = [_as_set(part, config, classes, {name: i for i, name in enumerate(groups)}) for part in parts]
    target_names = list(config.targets) if config.targets else None
    return SequenceData(sets[0], sets[1] if len(sets) > 1 else None, classes, first.channels, per_step=config.per_step,
                        target_names=target_names, schema=_schema(tables[0], config, first.features, left_out))


def _schema(table: Table, config: TableDataConfig, features: List[str], left_out: Dict[str, str]) -> InputSchema:
    """The columns of the table, by which other tables are read for the same model."""
    def column(name: str, why: str = "") -> Column:
        return Column(name, table.facts[name].type, why)

    words = {"targets": "target"}
    roles = tuple((words.get(role, role), name) for role, name in named_columns(config)
                  if role not in ("features", "time"))
    time = None if config.time is None else column(config.time)
    rest = tuple(column(name, why) for name, why in left_out.items())
    if config.arranged == "wide":
        return InputSchema(InputSchema.unnamed(1).features, False, None, rest, roles, tuple(features))
    return InputSchema(tuple(map(column, features)), True, time, rest, roles)


def _classes(tables: List[Table], config: TableDataConfig, parts: List[Part]) -> List[str]:
    """The names of the classes, and the labels as numbers in their order."""
    found = {part.label_names[code] for part in parts if part.labels is not None
             for code in np.unique(part.labels).tolist() if code >= 0}
    check_written(tables[0].path, str(config.label), found)
    names = set(map(class_name, found))
    return sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (1 << 30, name))


def _as_set(part: Part, config: TableDataConfig, classes: Optional[List[str]], groups: Dict[str, int]) -> SequenceSet:
    known = None
    if part.groups is not None:
        own = np.array([*(groups[name] for name in part.group_names), -1], dtype=np.int64)  # -1: in no group
        known = torch.from_numpy(own[part.groups])
    views = part.sequences
    flat: Any = None
    if part.labels is not None and classes is not None:
        place = {name: i for i, name in enumerate(classes)}
        codes = np.array([*(place.get(class_name(name), IGNORE) for name in part.label_names), IGNORE], dtype=np.int64)
        flat = torch.from_numpy(codes[part.labels])  # -1, a missing label, indexes the last
    elif part.values is not None:
        flat = torch.from_numpy(part.values)
    if flat is None:
        targets: Any = torch.zeros(len(views), dtype=torch.int64)
    else:
        targets = Views(flat, views.starts, views.ends) if config.per_step else flat
    return SequenceSet(views, targets, known, part.names, part.files)

"""One's own CSV or Parquet tables: ``data=table data.train_path=A.parquet data.sequence=id data.label=class``.

Two layouts. Long: one row a step, the rows of a sequence anywhere, put in order by a time column. Lists: one row a
sequence, each feature a list. Rows are read block by block and go to one array of float32 (in a file where it is
large), so that the table may be larger than memory; what stays in memory is some 30 bytes for each row. A process that
needs some of the sequences keeps only those, and of Parquet reads only the row groups that hold them.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np
import torch

from app.data.arrow import Table, open_table
from app.data.long_rows import Order, order_rows
from app.data.sequences import IGNORE, SequenceData, SequenceSet
from app.data.views import Views, empty_array
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["load"]


class Part(NamedTuple):
    """One file, read.

    Attributes:
        sequences: ``[T_i, D]`` float32 each.
        labels: one a sequence, or one a row in their order; strings, None where there is none.
        values: ``[N, K]``, or ``[rows, K]`` per step; float32.
        groups: one a sequence, strings.
        names: of the sequences, where they have some.
    """

    sequences: Views
    labels: Optional[np.ndarray]
    values: Optional[np.ndarray]
    groups: Optional[np.ndarray]
    names: Optional[List[str]] = None


def load(config: TableDataConfig, choose: Optional[Callable[[int], np.ndarray]] = None) -> SequenceData:
    """Read the files.

    Args:
        config: which files, and what their columns mean.
        choose: of the number of sequences, which are needed, ``[N]`` bool; the others are left empty. For one file
            without labels and targets. None: all.

    Raises:
        DataError: a missing or damaged file, an unknown column, a value that is no number, labels or groups that
            change within a sequence, or pyarrow is not installed.
        ConfigError: settings that name columns the file does not have.
    """
    tables = [open_table(path, config) for path in (config.train_path, config.test_path) if path is not None]
    features = config.features or tables[0].numbers(config)
    parts = [(_read_long if config.sequence else _read_lists)(table, config, features, choose) for table in tables]
    classes = None
    if config.label is not None:
        found = {label for part in parts for label in part.labels.tolist() if label is not None}
        classes = sorted(found, key=lambda name: (len(name), name) if name.isdigit() else (1 << 30, name))
    groups = sorted({name for part in parts if part.groups is not None for name in part.groups.tolist()})
    sets = [_as_set(part, config, classes, {name: i for i, name in enumerate(groups)}) for part in parts]
    return SequenceData(sets[0], sets[1] if len(sets) > 1 else None, classes, len(features), per_step=config.per_step,
                        target_names=list(config.targets) if config.targets else None)


def _as_set(part: Part, config: TableDataConfig, classes: Optional[List[str]], groups: Dict[str, int]) -> SequenceSet:
    known = None if part.groups is None else torch.tensor([groups[name] for name in part.groups.tolist()])
    if part.labels is not None and classes is not None:
        codes = {name: i for i, name in enumerate(classes)}
        flat = torch.tensor([codes.get(name, IGNORE) for name in part.labels.tolist()], dtype=torch.int64)
    elif part.values is not None:
        flat = torch.from_numpy(part.values)
    else:
        return SequenceSet(part.sequences, torch.zeros(len(part.sequences), dtype=torch.int64), known,
                           part.names)
    views = part.sequences
    targets = Views(flat, views.starts, views.ends) if config.per_step else flat
    return SequenceSet(views, targets, known, part.names)


def _read_long(table: Table, config: TableDataConfig, features: List[str], choose: Any) -> Part:
    order = order_rows(table, config)
    order = order if choose is None else order.only(choose(len(order.names)))
    wanted = [*features, *(config.targets or ())]
    values = empty_array((order.rows, len(features)), np.float32, config.scratch)
    targets = empty_array((order.rows, len(config.targets)), np.float32, config.scratch) if config.targets else None
    for start, block in table.blocks(wanted, order.wanted):
        rows = order.places(start, block.num_rows)
        read = table.matrix(block, features, start, config.missing != "error")
        if order.wanted is not None:
            mine = order.wanted[start : start + block.num_rows]
            rows, read = rows[mine], read[mine]
        values[rows] = read
        if targets is not None:
            targets[rows] = table.matrix(block, config.targets, start, config.per_step)
    if targets is not None and not config.per_step:
        targets = _one_each(table, order, targets, config.targets)
    sequences = Views(torch.from_numpy(values), torch.from_numpy(order.starts), torch.from_numpy(order.ends))
    return Part(sequences, order.labels, targets, order.groups, order.names)


def _one_each(table: Table, order: Order, values: np.ndarray, names: Any) -> np.ndarray:
    """The first row's values of each sequence, which all its rows must have."""
    first = values[order.starts]
    same = values == np.repeat(first, order.ends - order.starts, axis=0)
    if not same.all():
        row, column = np.argwhere(~same)[0]
        name = order.names[np.searchsorted(order.ends, row, side="right")]
        raise data_error(table.path, f"sequence {name!r}, column {names[column]!r}", "must be the same in all its rows",
                         float(values[row, column]), "or say data.per_step=true")
    return np.ascontiguousarray(first)


def _read_lists(table: Table, config: TableDataConfig, features: List[str], choose: Any) -> Part:
    chosen = None if choose is None else choose(table.rows())
    lengths = table.list_lengths(features, [*(config.targets or ())] if config.per_step else [], chosen)
    ends = np.cumsum(lengths)
    values = empty_array((int(lengths.sum()), len(features)), np.float32, config.scratch)
    labels: List[Any] = []
    groups: List[Any] = []
    targets: List[np.ndarray] = []
    wanted = [*features, *(config.targets or ()), *([config.label] if config.label else []),
              *([config.group] if config.group else [])]
    row = 0
    for start, block in table.blocks(wanted, chosen):
        flat = np.stack([table.flat(block, name) for name in features], 1)
        flat = table.finite(flat, features, start, config.missing != "error", "sequence")
        if chosen is not None:
            flat = flat[np.repeat(chosen[start : start + block.num_rows], table.sizes(block, features[0]))]
        values[row : row + len(flat)] = flat
        row += len(flat)
        if config.targets:
            read = table.flat if config.per_step else table.column
            found = np.stack([read(block, name) for name in config.targets], 1)
            what = "sequence" if config.per_step else "row"
            targets.append(table.finite(found, config.targets, start, config.per_step, what).astype(np.float32))
        if config.label:
            labels += table.strings(block, config.label, flat=config.per_step)
        if config.group:
            groups += table.strings(block, config.group)
    if config.label and config.per_step and len(labels) != row:
        raise data_error(table.path, f"column {config.label!r}", "must be lists as long as those of the features",
                         f"{len(labels)} labels for {row} steps")
    sequences = Views(torch.from_numpy(values), torch.from_numpy(ends - lengths), torch.from_numpy(ends))
    joined = np.concatenate(targets) if targets else None
    return Part(sequences, _labels(table, config, labels), joined, np.array(groups, dtype=object) if groups else None)


def _labels(table: Table, config: TableDataConfig, labels: List[Any]) -> Optional[np.ndarray]:
    if not config.label:
        return None
    if not config.per_step and None in labels:
        raise data_error(table.path, f"row {labels.index(None) + 1}, column {config.label!r}", "must have a label",
                         None, "give it one, or leave the row out")
    return np.array(labels, dtype=object)


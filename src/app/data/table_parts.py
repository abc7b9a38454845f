"""Sequences from a long table, which has one row for each step."""

from typing import Any, Dict, List, Optional

import numpy as np
import torch

from app.data.long_rows import Order, order_rows
from app.data.part import Part
from app.data.tables import Block, Table
from app.data.tables.copies import find_copies, row_blocks
from app.data.views import Views, empty_array
from app.data.windows import cut
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["finite", "read_long", "without"]


def read_long(table: Table, config: TableDataConfig, features: List[str], choose: Any) -> Part:
    """One row for each step."""
    order = order_rows(table, config)
    targets = _long_targets(table, config)
    copies = _long_copies(table, config, features, order, targets) if choose is None else {}
    if config.features is None:
        features = without(table, features, copies)
    if targets is not None and order.place is not None:
        placed = np.empty_like(targets)
        placed[order.place] = targets
        targets = placed
    if config.window is None and targets is not None and not config.per_step:
        targets = _same_in_all(table, order, targets, config.targets or [])
    order = order if choose is None else order.only(choose(len(order.names)))
    values = empty_array((order.rows, len(features)), np.float64, config.scratch)
    for block in table.blocks(features, order.wanted):
        rows = order.places(block.first, block.rows)
        read = finite(block, np.stack([block.numbers(name) for name in features], 1), features, config.missing)
        if order.wanted is not None:
            mine = order.wanted[block.first : block.first + block.rows]
            rows, read = rows[mine], read[mine]
        values[rows] = read
    sequences = Views(torch.from_numpy(values), torch.from_numpy(order.starts), torch.from_numpy(order.ends))
    part = Part(sequences, features, len(features), order.labels, order.label_names, targets, order.groups,
                order.group_names, order.names, [table.files[file].name for file in order.files], copies)
    return part if config.window is None else cut(part, table, config)


def without(table: Table, features: List[str], copies: Dict[str, str]) -> List[str]:
    """The features, except those that reveal the target.

    Raises:
        DataError: no feature is left.
    """
    kept = [name for name in features if name not in copies]
    if not kept:
        first = next(iter(copies))
        raise data_error(table.path, "features", "must be more than copies of what is known",
                         ", ".join(f"{name} ({why})" for name, why in copies.items()),
                         f"list in data.features what to read, e.g. data.features=[{first}]")
    return kept


def _long_targets(table: Table, config: TableDataConfig) -> Optional[np.ndarray]:
    """``[rows, K]``, in the order of the table."""
    if not config.targets:
        return None
    found = []
    for block in table.blocks(config.targets):
        read = np.stack([block.numbers(name) for name in config.targets], 1)
        found.append(finite(block, read, config.targets, "keep" if config.per_step else "error", True))
    return np.concatenate(found)


def _long_copies(table: Table, config: TableDataConfig, features: List[str], order: Order,
                 targets: Optional[np.ndarray]) -> Dict[str, str]:
    number = order.sequence_of_rows()
    label, labels = order.labels, 0
    if label is not None:
        labels = int((label >= 0).sum())
        if len(label) == len(order.names) and not (config.per_step or config.window):
            label = label[number]
        elif order.place is not None:
            label = label[order.place]
    named = {} if targets is None else {name: targets[:, i] for i, name in enumerate(config.targets or [])}
    numbers = [name for name in features if table.facts[name].kind == "number"]
    sequence = number if len(order.names) > 1 else None
    return find_copies(row_blocks(table), table.starts, numbers, label, labels, sequence, named)


def _same_in_all(table: Table, order: Order, values: np.ndarray, names: List[str]) -> np.ndarray:
    """The values in the first row of each sequence, which must be the same in all its rows."""
    first = values[order.starts]
    same = values == np.repeat(first, order.ends - order.starts, axis=0)
    if not same.all():
        row, column = np.argwhere(~same)[0]
        name = order.names[np.searchsorted(order.ends, row, side="right")]
        raise data_error(table.path, f"sequence {name!r}, column {names[column]!r}", "must be the same in all its rows",
                         float(values[row, column]), "or set data.per_step=true")
    return np.ascontiguousarray(first)


def finite(block: Block, values: np.ndarray, names: List[str], missing: str, targets: bool = False,
           sizes: Optional[np.ndarray] = None) -> np.ndarray:
    """The values ``[rows, names]``, after a check that none is infinite in 32 bits or, with ``missing="error"``, NaN.

    Args:
        block: the rows.
        names: names of the columns.
        missing: as ``data.missing``; ``keep`` for targets that may be missing.
        targets: whether they are targets; otherwise features.
        sizes: the lengths of the lists in each row of the file, if the columns are lists.
    """
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    if missing != "error":
        bad &= ~np.isnan(values)
    if not bad.any():
        return values
    place, column = np.argwhere(bad)[0]
    row = int(place if sizes is None else np.searchsorted(np.cumsum(sizes), place, side="right"))
    value = float(values[place, column])
    if np.isnan(value) and targets:
        raise block.error(row, names[column], "must have a value", None, "give it one, or leave the sequence out")
    if np.isnan(value):
        raise block.error(row, names[column], "must be a finite number", value,
                          "set data.missing=mean or data.missing=forward to replace it")
    hint = "correct it" if targets else "correct it, or leave the column out of data.features"
    rule = "must be finite in 32 bits" if np.isfinite(value) else "must be a finite number"
    raise block.error(row, names[column], rule, value, hint)

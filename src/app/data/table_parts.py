"""The layouts of a table: rows to sequences."""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch

from app.data.long_rows import Names, Order, order_rows
from app.data.part import Part
from app.data.tables import Block, Table
from app.data.tables.copies import find_copies
from app.data.views import Views, empty_array
from app.data.windows import cut
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["read_lists", "read_long", "read_wide"]


def read_long(table: Table, config: TableDataConfig, features: List[str], choose: Any) -> Part:
    """A row a step."""
    order = order_rows(table, config)
    targets = _long_targets(table, config)
    copies = _long_copies(table, config, features, order, targets) if choose is None else {}
    if config.features is None:
        features = _without(table, features, copies)
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
        read = _finite(block, np.stack([block.numbers(name) for name in features], 1), features, config.missing)
        if order.wanted is not None:
            mine = order.wanted[block.first : block.first + block.rows]
            rows, read = rows[mine], read[mine]
        values[rows] = read
    sequences = Views(torch.from_numpy(values), torch.from_numpy(order.starts), torch.from_numpy(order.ends))
    part = Part(sequences, features, len(features), order.labels, order.label_names, targets, order.groups,
                order.group_names, order.names, [table.files[file].name for file in order.files], copies)
    return part if config.window is None else cut(part, table, config)


def _without(table: Table, features: List[str], copies: Dict[str, str]) -> List[str]:
    kept = [name for name in features if name not in copies]
    if not kept:
        first = next(iter(copies))
        raise data_error(table.path, "features", "must be more than copies of what is known",
                         ", ".join(f"{name} ({why})" for name, why in copies.items()),
                         f"name with data.features what to read, e.g. data.features=[{first}]")
    return kept


def _long_targets(table: Table, config: TableDataConfig) -> Optional[np.ndarray]:
    """``[rows, K]``, in the order of the table."""
    if not config.targets:
        return None
    found = []
    for block in table.blocks(config.targets):
        read = np.stack([block.numbers(name) for name in config.targets], 1)
        found.append(_finite(block, read, config.targets, "keep" if config.per_step else "error", ""))
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
    return find_copies(table, numbers, label, labels, number if len(order.names) > 1 else None, named)


def _same_in_all(table: Table, order: Order, values: np.ndarray, names: List[str]) -> np.ndarray:
    """The first row's values of each sequence, which all its rows must have."""
    first = values[order.starts]
    same = values == np.repeat(first, order.ends - order.starts, axis=0)
    if not same.all():
        row, column = np.argwhere(~same)[0]
        name = order.names[np.searchsorted(order.ends, row, side="right")]
        raise data_error(table.path, f"sequence {name!r}, column {names[column]!r}", "must be the same in all its rows",
                         float(values[row, column]), "or say data.per_step=true")
    return np.ascontiguousarray(first)


def read_wide(table: Table, config: TableDataConfig, features: List[str], choose: Any) -> Part:
    """A row a sequence, a column a step. Empty cells at the end of a row are behind the end of its sequence."""
    chosen = np.ones(table.rows, bool) if choose is None else choose(table.rows)
    heads = _Heads(table, config)
    lengths = np.zeros(table.rows, np.int64)
    found: List[np.ndarray] = []
    for block in table.blocks([*features, *heads.columns], chosen):
        read = np.stack([block.numbers(name) for name in features], 1)
        known = ~np.isnan(read)
        sizes = np.where(known.any(1), read.shape[1] - known[:, ::-1].argmax(1), 0)
        mine = chosen[block.first : block.first + block.rows]
        lengths[block.first : block.first + block.rows] = np.where(mine, sizes, 0)
        inside = np.arange(read.shape[1]) < sizes[:, None]
        _finite(block, np.where(inside, read, 0.0), features, config.missing)
        found.append(read[inside & mine[:, None]])
        heads.add(block)
    ends = np.cumsum(lengths)
    values = torch.from_numpy(np.concatenate(found)[:, None])
    views = Views(values, torch.from_numpy(ends - lengths), torch.from_numpy(ends))
    copies = {}
    if choose is None:
        copies = find_copies(table, features, heads.label_codes, table.rows, None, {})
    return heads.part(views, features, 1, copies)


def read_lists(table: Table, config: TableDataConfig, features: List[str], choose: Any) -> Part:
    """A row a sequence, each feature a list."""
    chosen = None if choose is None else choose(table.rows)
    per_step = config.per_step
    lengths = _list_lengths(table, features, list(config.targets or ()) if per_step else [], chosen)
    ends = np.cumsum(lengths)
    values = empty_array((int(lengths.sum()), len(features)), np.float64, config.scratch)
    heads = _Heads(table, config)
    row = 0
    for block in table.blocks([*features, *heads.columns], chosen):
        found = [block.lists(name) for name in features]
        sizes = found[0][0]
        flat = _finite(block, np.stack([flat for _, flat in found], 1), features, config.missing, sizes=sizes)
        if chosen is not None:
            flat = flat[np.repeat(chosen[block.first : block.first + block.rows], sizes)]
        values[row : row + len(flat)] = flat
        row += len(flat)
        heads.add(block, sizes)
    views = Views(torch.from_numpy(values), torch.from_numpy(ends - lengths), torch.from_numpy(ends))
    return heads.part(views, features, len(features), {})


class _Heads:
    """What rows that are whole sequences say beside their features."""

    def __init__(self, table: Table, config: TableDataConfig) -> None:
        self.table, self.config = table, config
        others = (config.sequence, config.label, config.group)
        self.columns = [name for name in others if name is not None] + list(config.targets or ())
        self.columns = self.columns or []
        self._labels, self._groups = Names(), Names()
        self._label_codes: List[np.ndarray] = []
        self._group_codes: List[np.ndarray] = []
        self._targets: List[np.ndarray] = []
        self._names: List[str] = []
        self._files: List[str] = []

    def add(self, block: Block, sizes: Optional[np.ndarray] = None) -> None:
        """Take in rows; ``sizes`` of their lists, for targets that are one a step."""
        config = self.config
        self._files += [block.name] * block.rows
        if config.sequence is not None:
            names = block.texts(config.sequence)
            if None in names:
                raise block.error(names.index(None), config.sequence, "must name a sequence", None)
            self._names += names  # type: ignore[arg-type]
        if config.label is not None:
            self._label_codes.append(self._labels.codes(self._read_labels(block, config.label, sizes)))
        if config.group is not None:
            groups = block.texts(config.group)
            if None in groups:
                raise block.error(groups.index(None), config.group, "must have a value", None)
            self._group_codes.append(self._groups.codes(groups))
        if config.targets:
            if config.per_step:
                read = np.stack([block.lists(name)[1] for name in config.targets], 1)
                self._targets.append(_finite(block, read, config.targets, "keep", "", sizes))
            else:
                read = np.stack([block.numbers(name) for name in config.targets], 1)
                self._targets.append(_finite(block, read, config.targets, "error", ""))

    def _read_labels(self, block: Block, name: str, sizes: Optional[np.ndarray]) -> List[Optional[str]]:
        if not self.config.per_step or sizes is None:
            labels = block.texts(name)
            if None in labels:
                raise block.error(labels.index(None), name, "must have a label", None,
                                  "give it one, or leave the row out")
            return labels
        mine, labels = block.text_lists(name)
        if (mine != sizes).any():
            place = int(np.flatnonzero(mine != sizes)[0])
            raise block.error(place, name, "must be lists as long as those of the features",
                              f"{mine[place]} labels for {sizes[place]} steps")
        return labels

    @property
    def label_codes(self) -> Optional[np.ndarray]:
        return np.concatenate(self._label_codes) if self._label_codes else None

    def part(self, views: Views, features: List[str], channels: int, copies: Dict[str, str]) -> Part:
        """All rows together."""
        if self._names:
            _check_ids(self.table, self.config, self._names, self._files)
        groups = np.concatenate(self._group_codes) if self._group_codes else None
        return Part(views, features, channels, self.label_codes, self._labels.names,
                    np.concatenate(self._targets) if self._targets else None, groups, self._groups.names,
                    self._names or None, self._files, copies)


def _check_ids(table: Table, config: TableDataConfig, names: List[str], files: List[str]) -> None:
    keys: List[Tuple[str, str]] = list(zip(names, files)) if config.ids == "per_file" else [(n, "") for n in names]
    if len(set(keys)) < len(keys):
        seen: Dict[Any, int] = {}
        for i, key in enumerate(keys):
            if key in seen:
                other = files[seen[key]]
                hint = "" if other == files[i] else "say data.ids=per_file if these are two sequences"
                raise data_error(table.path, f"column {config.sequence!r}", "must name each sequence once",
                                 names[i] if other == files[i] else f"{names[i]} in {other} and {files[i]}", hint)
            seen[key] = i


def _list_lengths(table: Table, features: List[str], more: List[str], wanted: Optional[np.ndarray]) -> np.ndarray:
    """``[rows]`` int64: steps of each sequence, 0 of those not ``wanted``; all list columns must agree."""
    lengths = np.zeros(table.rows, np.int64)
    columns = [*features, *more]
    for block in table.blocks(columns, wanted):
        sizes = [block.lists(name)[0] for name in columns]
        for name, size in zip(columns, sizes):
            if (size != sizes[0]).any():
                place = int(np.flatnonzero(size != sizes[0])[0])
                raise block.error(place, name, f"must have {int(sizes[0][place])} steps as {columns[0]!r} has",
                                  int(size[place]))
        lengths[block.first : block.first + block.rows] = sizes[0]
    return lengths if wanted is None else np.where(wanted, lengths, 0)


def _finite(block: Block, values: np.ndarray, names: List[str], missing: str,
            hint: str = "say with data.missing=mean or data.missing=forward what to put there",
            sizes: Optional[np.ndarray] = None) -> np.ndarray:
    """The values ``[rows, names]``, if none is infinite in 32 bits or, with ``missing`` of ``error``, NaN.

    Args:
        sizes: how many of the rows belong to each row of the file, where these are lists.
    """
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    if missing != "error":
        bad &= ~np.isnan(values)
    if bad.any():
        place, column = np.argwhere(bad)[0]
        row = int(place if sizes is None else np.searchsorted(np.cumsum(sizes), place, side="right"))
        value = float(values[place, column])
        rule = "must be finite in 32 bits" if np.isfinite(value) else "must be a finite number"
        raise block.error(row, names[column], rule, value, hint if np.isnan(value) else "")
    return values

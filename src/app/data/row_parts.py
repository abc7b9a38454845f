"""Sequences from tables with one row for each sequence, whose steps are in lists or in columns."""

from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch

from app.data.long_rows import Names
from app.data.part import Part
from app.data.table_parts import finite, without
from app.data.tables import Block, Table
from app.data.tables.copies import find_copies, row_blocks
from app.data.views import Views, empty_array
from app.errors import data_error
from cfg.data import TableDataConfig

__all__ = ["read_lists", "read_wide"]

Choose = Optional[Callable[[int], np.ndarray]]


def read_wide(table: Table, config: TableDataConfig, features: List[str], choose: Choose) -> Part:
    """One column for each step. Empty cells at the end of a row are after the end of its sequence."""
    chosen = np.ones(table.rows, bool) if choose is None else choose(table.rows)
    heads = _Heads(table, config, None)
    copies = {}
    if choose is None:
        copies = find_copies(row_blocks(table), table.starts, features, heads.labels, table.rows, None, heads.named())
    if config.features is None:
        features = without(table, features, copies)
    lengths = np.zeros(table.rows, np.int64)
    found: List[np.ndarray] = []
    for block in table.blocks(features, chosen):
        read = np.stack([block.numbers(name) for name in features], 1)
        known = ~np.isnan(read)
        sizes = np.where(known.any(1), read.shape[1] - known[:, ::-1].argmax(1), 0)
        mine = chosen[block.first : block.first + block.rows]
        lengths[block.first : block.first + block.rows] = np.where(mine, sizes, 0)
        inside = np.arange(read.shape[1]) < sizes[:, None]
        finite(block, np.where(inside, read, 0.0), features, config.missing)
        found.append(read[inside & mine[:, None]])
    ends = np.cumsum(lengths)
    values = torch.from_numpy(np.concatenate(found)[:, None])
    views = Views(values, torch.from_numpy(ends - lengths), torch.from_numpy(ends))
    return heads.part(views, features, 1, copies)


def read_lists(table: Table, config: TableDataConfig, features: List[str], choose: Choose) -> Part:
    """One list for each feature."""
    chosen = None if choose is None else choose(table.rows)
    lengths = _list_lengths(table, features, list(config.targets or ()) if config.per_step else [], chosen)
    ends = np.cumsum(lengths)
    heads = _Heads(table, config, lengths)
    copies = _list_copies(table, config, features, heads, lengths) if choose is None else {}
    if config.features is None:
        features = without(table, features, copies)
    values = empty_array((int(lengths.sum()), len(features)), np.float64, config.scratch)
    row = 0
    for block in table.blocks(features, chosen):
        found = [block.lists(name) for name in features]
        sizes = found[0][0]
        flat = finite(block, np.stack([flat for _, flat in found], 1), features, config.missing, sizes=sizes)
        if chosen is not None:
            flat = flat[np.repeat(chosen[block.first : block.first + block.rows], sizes)]
        values[row : row + len(flat)] = flat
        row += len(flat)
    views = Views(torch.from_numpy(values), torch.from_numpy(ends - lengths), torch.from_numpy(ends))
    return heads.part(views, features, len(features), copies)


def _list_copies(table: Table, config: TableDataConfig, features: List[str], heads: "_Heads", lengths: np.ndarray
                 ) -> Dict[str, str]:
    """The same as for a long table whose rows are the items of the lists."""
    def read(names: Sequence[str]) -> Iterator[Tuple[int, Mapping[str, np.ndarray]]]:
        first = 0
        for block in table.blocks(names):
            flat = {name: block.lists(name)[1] for name in dict.fromkeys(names)}
            yield first, flat
            first += len(next(iter(flat.values())))

    def each(values: np.ndarray) -> np.ndarray:
        return values if config.per_step else np.repeat(values, lengths, axis=0)

    if not lengths.sum():  # reported elsewhere
        return {}
    labels = None if heads.labels is None else int((heads.labels >= 0).sum())
    number = np.repeat(np.arange(table.rows), lengths)
    targets = {name: each(values) for name, values in heads.named().items()}
    edges = np.concatenate([[0], np.cumsum(lengths)])[table.starts]
    return find_copies(read, edges, features, None if heads.labels is None else each(heads.labels), labels or 0,
                       number if table.rows > 1 else None, targets)


class _Heads:
    """Names, labels, groups and targets of rows that are sequences."""

    def __init__(self, table: Table, config: TableDataConfig, lengths: Optional[np.ndarray]) -> None:
        """Read them for all rows; ``lengths`` ``[rows]`` of their lists, if there is a label or target for each
        step."""
        self.table, self.config = table, config
        others = (config.sequence, config.label, config.group)
        self.columns = [name for name in others if name is not None] + list(config.targets or ())
        self._labels, self._groups = Names(), Names()
        self._label_codes: List[np.ndarray] = []
        self._group_codes: List[np.ndarray] = []
        self._targets: List[np.ndarray] = []
        self._names: List[str] = []
        self._files: List[str] = []
        for block in table.blocks(self.columns or list(table.facts)[:1]):
            self._add(block, None if lengths is None else lengths[block.first : block.first + block.rows])

    def _add(self, block: Block, sizes: Optional[np.ndarray] = None) -> None:
        """Add rows; ``sizes`` of their lists, if there is a target for each step."""
        config = self.config
        self._files += [block.name] * block.rows
        if config.sequence is not None:
            names = block.texts(config.sequence)
            for place, name in enumerate(names):
                if name is None:
                    raise block.error(place, config.sequence, "must name a sequence", None)
                self._names.append(name)
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
                self._targets.append(finite(block, read, config.targets, "keep", True, sizes))
            else:
                read = np.stack([block.numbers(name) for name in config.targets], 1)
                self._targets.append(finite(block, read, config.targets, "error", True))

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
    def labels(self) -> Optional[np.ndarray]:
        """Numbers of the labels' names, one for each row or each step; None without a label column."""
        return np.concatenate(self._label_codes) if self._label_codes else None

    @property
    def targets(self) -> Optional[np.ndarray]:
        """Targets ``[rows, K]`` float64, or a row for each step; None without targets."""
        return np.concatenate(self._targets) if self._targets else None

    def named(self) -> Dict[str, np.ndarray]:
        """The targets by name."""
        targets = self.targets
        return {} if targets is None else {name: targets[:, i] for i, name in enumerate(self.config.targets or ())}

    def part(self, views: Views, features: List[str], channels: int, copies: Dict[str, str]) -> Part:
        """All rows together."""
        if self._names:
            _check_ids(self.table, self.config, self._names, self._files)
        groups = np.concatenate(self._group_codes) if self._group_codes else None
        return Part(views, features, channels, self.labels, self._labels.names, self.targets, groups,
                    self._groups.names, self._names or None, self._files, copies)


def _check_ids(table: Table, config: TableDataConfig, names: List[str], files: List[str]) -> None:
    keys: List[Tuple[str, str]] = list(zip(names, files)) if config.ids == "per_file" else [(n, "") for n in names]
    if len(set(keys)) < len(keys):
        seen: Dict[Any, int] = {}
        for i, key in enumerate(keys):
            if key in seen:
                other = files[seen[key]]
                hint = "" if other == files[i] else "set data.ids=per_file if these are two sequences"
                raise data_error(table.path, f"column {config.sequence!r}", "must name each sequence once",
                                 names[i] if other == files[i] else f"{names[i]} in {other} and {files[i]}", hint)
            seen[key] = i


def _list_lengths(table: Table, features: List[str], more: List[str], wanted: Optional[np.ndarray]) -> np.ndarray:
    """``[rows]`` int64: steps of each sequence, 0 if it is not ``wanted``; all list columns must agree."""
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



"""CSV and Parquet files, block by block, with errors that name file, column and row."""

from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from app.errors import DataError, data_error
from cfg.data import TableDataConfig
from cfg.validation import config_error, nearest

__all__ = ["Table", "open_table"]

BLOCK = 1 << 17  # rows

FORMATS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


def open_table(path: str, config: TableDataConfig) -> "Table":
    """A file, or a folder of files, with its columns checked.

    Raises:
        DataError: it is missing, empty or no table, or pyarrow is not installed.
        ConfigError: a setting names a column that it does not have.
    """
    try:
        import pyarrow.csv
        import pyarrow.dataset
    except ModuleNotFoundError as problem:
        raise DataError(f"data=table needs the package {problem.name!r}; pip install 'myfla[parquet]'") from None
    place = Path(path)
    if not place.exists():
        raise data_error("data", "path", "must be an existing CSV or Parquet file, or a folder of such", path)
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix.lower() in FORMATS)
    kinds = {FORMATS.get(file.suffix.lower()) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise data_error(path, "files", "must all be .csv or all be .parquet",
                         ", ".join(sorted({file.suffix or file.name for file in files})) or "an empty folder")
    names, kind = [str(file) for file in files], kinds.pop()
    for file in files:
        if not file.stat().st_size:
            raise data_error(str(file), "file", "must have a header and rows" if kind == "csv" else "must have rows",
                             "0 bytes")
    try:
        data = pyarrow.dataset.dataset(names, format=kind)
        if kind == "csv":
            # What is not a feature stays text, so that "007" and "7" are two labels, whatever the first block shows.
            texts = [c for c in (config.sequence, config.label, config.group) if c in data.schema.names]
            numbers = [c for c in (config.features or ()) if c in data.schema.names]
            types = {**{c: pyarrow.string() for c in texts}, **{c: pyarrow.float64() for c in numbers}}
            convert = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            data = pyarrow.dataset.dataset(names, format=pyarrow.dataset.CsvFileFormat(convert_options=convert))
        table = Table(path, data)
        _check_columns(table, config)
        if not table.rows():
            raise data_error(path, "rows", "must be at least one", 0)
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as problem:
        raise DataError(f"{path}: cannot be read as {kind}: {str(problem).splitlines()[0]}") from None
    return table


def _check_columns(table: "Table", config: TableDataConfig) -> None:
    named = [("sequence", config.sequence), ("time", config.time), ("label", config.label), ("group", config.group)]
    named += [("features", name) for name in config.features or ()] + [("targets", n) for n in config.targets or ()]
    known = table.data.schema.names
    for field, name in named:
        if name is not None and name not in known:
            hint = nearest(name, known) or "it has " + ", ".join(known[:20])
            raise config_error(f"data.{field}", f"must be a column of {table.path}", name, hint)


class Table:
    """One table.

    Args:
        path: as the user wrote it.
        data: a ``pyarrow.dataset.Dataset``.
    """

    def __init__(self, path: str, data: Any) -> None:
        self.path, self.data = path, data

    def rows(self) -> int:
        """How many."""
        return self.data.count_rows()

    def numbers(self, config: TableDataConfig) -> List[str]:
        """The columns that are features if none are named: those of numbers that have no other part."""
        import pyarrow.types as kinds

        others = {config.sequence, config.time, config.label, config.group, *(config.targets or ())}

        def fits(kind: Any) -> bool:
            kind = kind.value_type if config.sequence is None and kinds.is_list(kind) else kind
            return kinds.is_floating(kind) or kinds.is_integer(kind) or kinds.is_boolean(kind)

        names = [field.name for field in self.data.schema if field.name not in others and fits(field.type)]
        if not names:
            raise config_error("data.features", f"must name columns of {self.path}, which has none of numbers left",
                               None)
        return names

    def blocks(self, columns: Sequence[str], wanted: Optional[np.ndarray] = None) -> Iterator[Tuple[int, Any]]:
        """``(number of the first row, record batch)`` of all rows, in order.

        Args:
            columns: to read.
            wanted: ``[rows]`` bool; row groups of Parquet without any of them are passed over. None: all.
        """
        import pyarrow

        try:
            for start, scanner in self._scanners(list(dict.fromkeys(columns)), wanted):
                for block in scanner.to_batches():
                    if block.num_rows:
                        yield start, block
                        start += block.num_rows
        except (OSError, pyarrow.ArrowException) as problem:
            raise DataError(f"{self.path}: cannot be read: {str(problem).splitlines()[0]}") from None

    def _scanners(self, columns: List[str], wanted: Optional[np.ndarray]) -> Iterator[Tuple[int, Any]]:
        """``(number of the first row, its scanner)``: of the whole, or of each row group with something wanted."""
        from pyarrow.dataset import ParquetFileFormat

        if wanted is None or not isinstance(self.data.format, ParquetFileFormat):
            yield 0, self.data.scanner(columns=columns, batch_size=BLOCK)
            return
        start = 0
        for fragment in self.data.get_fragments():
            for group in fragment.split_by_row_group():
                end = start + group.row_groups[0].num_rows  # count_rows() is that of the whole file
                if wanted[start:end].any():
                    yield start, group.scanner(schema=self.data.schema, columns=columns, batch_size=BLOCK)
                start = end

    def column(self, block: Any, name: str) -> np.ndarray:
        """Numbers of one column, float64, NaN where there is none."""
        return self._floats(block.column(name), name)

    def flat(self, block: Any, name: str) -> np.ndarray:
        """Numbers of one column of lists, one list after the other."""
        column = block.column(name)
        return self._floats(column.flatten() if _is_list(column) else column, name)

    def sizes(self, block: Any, name: str) -> np.ndarray:
        """``[rows]`` int64: how long the lists of one column are; 0 where there is none."""
        return np.nan_to_num(self._floats(_list_sizes(block.column(name)), name)).astype(np.int64)

    def strings(self, block: Any, name: str, flat: bool = False) -> List[Any]:
        """One column as text; None where there is none."""
        import pyarrow

        column = block.column(name)
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if flat and _is_list(column):
            column = column.flatten()
        try:
            return column.cast(pyarrow.string()).to_pylist()
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            raise data_error(self.path, f"column {name!r}", "must hold text or whole numbers",
                             str(column.type)) from None
        except UnicodeDecodeError as problem:
            raise data_error(self.path, f"column {name!r}", "must be UTF-8", bytes(problem.object[:40])) from None

    def matrix(self, block: Any, names: Sequence[str], start: int, missing: bool) -> np.ndarray:
        """``[rows, names]`` float64."""
        values = np.stack([self.column(block, name) for name in names], 1)
        return self.finite(values, names, start, missing)

    def finite(self, values: np.ndarray, names: Sequence[str], start: int, missing: bool, what: str = "row"
               ) -> np.ndarray:
        """The values, if none is infinite in 32 bits or, without ``missing``, NaN."""
        bad = ~(np.abs(values) <= np.finfo(np.float32).max)
        if missing:
            bad &= ~np.isnan(values)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            place = f"row {start + row + 1}" if what == "row" else f"steps of the sequences from {start + 1} on"
            hint = "say with data.missing=mean or data.missing=forward what to put there"
            value = float(values[row, column])
            rule = "must be finite in 32 bits" if np.isfinite(value) else "must be a finite number"
            raise data_error(self.path, f"{place}, column {names[column]!r}", rule, value,
                             hint if np.isnan(value) else "")
        return values

    def list_lengths(self, features: Sequence[str], more: Sequence[str], wanted: Optional[np.ndarray] = None
                     ) -> np.ndarray:
        """``[rows]`` int64: steps of each sequence, 0 of those not ``wanted``; all list columns must agree."""
        lengths = np.zeros(self.rows(), np.int64)
        columns = [*features, *more]
        for start, block in self.blocks(columns, wanted):
            for name in columns:
                if not _is_list(block.column(name)):
                    raise data_error(self.path, f"column {name!r}", "must hold lists, one for each sequence",
                                     str(block.column(name).type), "or say with data.sequence which column names them")
            sizes = [self.sizes(block, name) for name in columns]
            for name, size in zip(columns, sizes):
                if (size != sizes[0]).any():
                    row = int(np.flatnonzero(size != sizes[0])[0])
                    raise data_error(self.path, f"row {start + row + 1}, column {name!r}",
                                     f"must have {int(sizes[0][row])} steps as {columns[0]!r} has", int(size[row]))
            lengths[start : start + block.num_rows] = sizes[0]
        return lengths if wanted is None else np.where(wanted, lengths, 0)

    def _floats(self, column: Any, name: str) -> np.ndarray:
        import pyarrow

        try:
            return np.array(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as problem:
            raise data_error(self.path, f"column {name!r}", "must hold numbers", str(problem).splitlines()[0]) from None


def _is_list(column: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_list(column.type) or kinds.is_large_list(column.type) or kinds.is_fixed_size_list(column.type)


def _list_sizes(column: Any) -> Any:
    import pyarrow.compute

    return pyarrow.compute.list_value_length(column)

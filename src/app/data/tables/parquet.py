"""One Parquet file: its columns and its rows."""

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from app.data.tables.blocks import Block, clean
from app.data.tables.cells import DATES, REAL, WHOLE, ZONED
from app.data.tables.facts import DATE, EMPTY, INDEX, LISTS, NUMBER, OTHER, TEXT, TEXTS, Fact
from app.errors import DataError, data_error

__all__ = ["ParquetFile"]


class ParquetFile:
    """A file whose schema has been read.

    Args:
        path: of the file.

    Attributes:
        names: of the columns.
        facts: of the columns.
        rows: number of rows.

    Raises:
        DataError: it is empty, damaged, or pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as problem:
            raise DataError(f"{path}: Parquet needs the package {problem.name!r}; pip install 'myfla[parquet]'"
                            ) from None
        self.path, self.who = path, str(path)
        if not path.stat().st_size:
            raise data_error(self.who, "file", "must have rows", "0 bytes")
        self._broken = (OSError, UnicodeDecodeError, pyarrow.ArrowException)
        try:
            file = pyarrow.parquet.ParquetFile(self.who)
            schema, self.rows = file.schema_arrow, file.metadata.num_rows
            self.groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            file.close()
        except self._broken as problem:
            raise self._unreadable(problem) from None
        self.names = list(schema.names)
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise data_error(self.who, "columns", "must have different names", twice[0])
        index = _index_of_pandas(schema)
        self.facts: Dict[str, Fact] = {field.name: _fact(field, field.name in index) for field in schema}

    def blocks(self, columns: Sequence[str], wanted: Optional[np.ndarray], size: int) -> Iterator[Tuple[int, Any]]:
        """``(rows before, record batch)``.

        Args:
            columns: to read.
            wanted: ``[rows]`` bool; row groups without any of them are skipped. None: all.
            size: most rows of a batch.
        """
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.who) as file:
                start = 0
                for group, rows in enumerate(self.groups):
                    if wanted is None or wanted[start : start + rows].any():
                        at = start
                        for batch in file.iter_batches(size, row_groups=[group], columns=list(columns)):
                            if batch.num_rows:
                                yield at, batch
                            at += batch.num_rows
                    start += rows
        except self._broken as problem:
            raise self._unreadable(problem) from None

    def _unreadable(self, problem: Exception) -> DataError:
        return DataError(f"{self.who}: cannot be read as parquet: {(str(problem).splitlines() or ['?'])[0]}")


class ArrowBlock(Block):
    """Rows of a Parquet file.

    Args:
        batch: a ``pyarrow.RecordBatch``.
        facts: of the columns.
    """

    def __init__(self, file: str, name: str, row: int, first: int, batch: Any, facts: Mapping[str, Fact]) -> None:
        super().__init__(file, name, row, first, batch.num_rows)
        self._batch, self._facts = batch, facts

    def numbers(self, name: str) -> np.ndarray:
        return self._floats(self._column(name), name)

    def texts(self, name: str) -> List[Optional[str]]:
        return self._strings(self._column(name), name)

    def times(self, name: str) -> Tuple[np.ndarray, str]:
        import pyarrow as pa

        column = self._column(name)
        if _is_text(column.type):
            return self.cells_as_times(column.cast(pa.string()).to_pylist(), name, self._facts[name])
        kind = REAL
        try:
            if pa.types.is_temporal(column.type):
                kind = ZONED if getattr(column.type, "tz", None) else DATES if not _is_span(column.type) else WHOLE
                column = _nanoseconds(column)
            elif pa.types.is_integer(column.type) and not column.null_count:
                column, kind = column.cast(pa.int64()), WHOLE
        except pa.ArrowInvalid as problem:
            raise data_error(self.file, f"column {name!r}", "must be times that fit 64 bits of nanoseconds",
                             str(problem).splitlines()[0]) from None
        if column.null_count:
            place = column.is_null().to_pylist().index(True)
            raise self.error(place, name, "must have a time", None)
        if kind != REAL:
            return np.array(column.to_numpy(zero_copy_only=False), dtype=np.int64), kind
        values = self._floats(column, name)
        if not np.isfinite(values).all():
            raise self.error(int(np.flatnonzero(~np.isfinite(values))[0]), name, "must have a time", None)
        return values, kind

    def lists(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        sizes, flat = self._flat(name)
        if _is_text(flat.type):
            raise data_error(self.file, f"column {name!r}", "must hold lists of numbers", str(flat.type))
        return sizes, self._floats(flat, name)

    def text_lists(self, name: str) -> Tuple[np.ndarray, List[Optional[str]]]:
        sizes, flat = self._flat(name)
        return sizes, self._strings(flat, name)

    def _column(self, name: str) -> Any:
        column = self._batch.column(self._batch.schema.get_field_index(name))
        return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column

    def _flat(self, name: str) -> Tuple[np.ndarray, Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._column(name)
        if not _is_list(column.type):
            raise data_error(self.file, f"column {name!r}", "must hold lists, one for each sequence",
                             str(column.type), "or set data.sequence to the column that names them, or "
                             "data.layout=wide for one row a sequence and one column a step")
        sizes = np.nan_to_num(self._floats(pc.list_value_length(column), name)).astype(np.int64)
        flat = column.flatten()
        if len(flat) != sizes.sum():  # old versions keep the values of a missing list of fixed size
            flat = pa.concat_arrays([part.values for part in column if part.is_valid]) if sizes.sum() else flat[:0]
        return sizes, flat.dictionary_decode() if hasattr(flat, "dictionary_decode") else flat

    def _floats(self, column: Any, name: str) -> np.ndarray:
        import pyarrow as pa

        if _is_text(column.type):
            return self.cells_as_numbers(column.cast(pa.string()).to_pylist(), name, self._facts[name])
        try:
            if pa.types.is_decimal(column.type):  # through text, which gives the nearest float64 in every version
                texts = [None if value is None else str(value) for value in column.to_pylist()]
                return np.array([np.nan if text is None else float(text) for text in texts], dtype=np.float64)
            if pa.types.is_boolean(column.type) or pa.types.is_null(column.type):
                column = column.cast(pa.int8())
            elif not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                raise data_error(self.file, f"column {name!r}", "must hold numbers", str(column.type))
            return np.array(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as problem:
            raise data_error(self.file, f"column {name!r}", "must hold numbers", str(problem).splitlines()[0]) from None

    def _strings(self, column: Any, name: str) -> List[Optional[str]]:
        import pyarrow as pa

        try:
            if pa.types.is_floating(column.type):  # 1.0 means 1: whole numbers with an empty cell become 1.0
                return [None if value is None or value != value else
                        str(int(value)) if abs(value) < 2**53 and value == int(value) else repr(value)
                        for value in column.to_pylist()]
            if pa.types.is_boolean(column.type):
                return [None if value is None else "true" if value else "false" for value in column.to_pylist()]
            return clean(column.cast(pa.string()).to_pylist())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise data_error(self.file, f"column {name!r}", "must hold text or whole numbers",
                             str(column.type)) from None
        except UnicodeDecodeError as problem:
            raise data_error(self.file, f"column {name!r}", "must be UTF-8", bytes(problem.object[:40])) from None


def _fact(field: Any, index: bool) -> Fact:
    kind, why = _kind(field.type)
    if index:
        kind, why = INDEX, "index of pandas"
    return Fact(field.name, kind, str(field.type), why)


def _kind(type: Any) -> Tuple[str, str]:
    import pyarrow.types as kinds

    if kinds.is_dictionary(type):
        return _kind(type.value_type)
    if kinds.is_integer(type) or kinds.is_floating(type) or kinds.is_decimal(type) or kinds.is_boolean(type):
        return NUMBER, ""
    if kinds.is_null(type):
        return EMPTY, "empty"
    if _is_text(type):
        return TEXT, "text"
    if kinds.is_temporal(type):
        return DATE, "dates" if not _is_span(type) else "spans of time"
    if _is_list(type):
        inner = _kind(type.value_type)[0]
        return {NUMBER: (LISTS, ""), EMPTY: (LISTS, ""), TEXT: (TEXTS, "lists of text")}.get(
            inner, (OTHER, f"lists of {type.value_type}"))
    return OTHER, str(type)


def _is_text(type: Any) -> bool:
    import pyarrow.types as kinds

    views = getattr(kinds, "is_string_view", lambda _: False)
    return kinds.is_string(type) or kinds.is_large_string(type) or views(type) or kinds.is_binary(type) or \
        kinds.is_large_binary(type)


def _is_list(type: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_list(type) or kinds.is_large_list(type) or kinds.is_fixed_size_list(type)


def _is_span(type: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_duration(type) or kinds.is_time(type)


def _nanoseconds(column: Any) -> Any:
    import pyarrow as pa

    kinds = pa.types
    if kinds.is_time(column.type):
        if column.type.bit_width == 32:
            column = column.cast(pa.time32("ms")).cast(pa.time64("us"))
        return column.cast(pa.time64("ns")).cast(pa.int64())
    if kinds.is_duration(column.type):
        return column.cast(pa.duration("ns")).cast(pa.int64())
    if kinds.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    return column.cast(pa.timestamp("ns", getattr(column.type, "tz", None))).cast(pa.int64())


def _index_of_pandas(schema: Any) -> List[str]:
    """Columns that are the index according to pandas' metadata; without a name, they are called
    ``__index_level_0__``."""
    names = [name for name in schema.names if name.startswith("__index_level_") or name in ("", "Unnamed: 0")]
    try:
        found = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        names += [name for name in found if isinstance(name, str)]
    except (ValueError, AttributeError, TypeError):  # metadata of another program with that name
        pass
    return names

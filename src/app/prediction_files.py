"""Predictions as CSV, Parquet or JSON lines, part by part; a file gets its name when it is complete."""

import contextlib
import csv
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence

import torch
from torch import Tensor

from app.errors import RunError
from app.run_folder import whole_file
from encoders.training.data.identity import Identity
from encoders.training.tasks.answers import Answers
from myfla.utils.atomic import replacing

__all__ = ["FORMATS", "Part", "open_predictions", "require"]

FORMATS = (".csv", ".parquet", ".jsonl")


class Part(NamedTuple):
    """Predictions of some sequences.

    Attributes:
        ids: ids of the sequences.
        lengths: ``[n]`` int64, steps of each.
        answers: one for each sequence, or one for each step, in the order of the sequences.
        per_step: whether there is one for each step.
    """

    ids: Identity
    lengths: Tensor
    answers: Answers
    per_step: bool


Write = Callable[[Part], None]


def require(path: Path) -> None:
    """Check that a file can be written in its format, and that no existing file is overwritten.

    Raises:
        RunError: the file exists, or a package is missing.
    """
    if path.exists():
        raise RunError(f"job.output must be a new file; got {str(path)!r}, which exists; name another, or remove it")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise RunError(f"job.output={str(path)!r} needs the package 'pyarrow'; pip install 'myfla[parquet]', or "
                           "name a file .csv or .jsonl") from None


@contextlib.contextmanager
def open_predictions(path: Path, names: Sequence[str], all_classes: bool) -> Iterator[Write]:
    """A function that writes parts one after the other.

    A row has ``sequence`` (its number), ``id`` and ``file`` where they are known, per step ``step`` (from 0), and
    ``predicted`` with ``probability`` and ``probability NAME`` for each class, or ``predicted NAME`` for each value.
    JSON lines have ``probabilities`` and ``predicted`` by name instead.

    Args:
        path: ends in one of `FORMATS`.
        names: of the classes or values.
        all_classes: whether the probability of each class is written, besides that of the predicted one.

    Raises:
        RunError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".parquet":
            with replacing(path) as temporary:
                yield from _parquet(temporary, names, all_classes)
        else:
            with whole_file(path) as file:
                rows = _rows if path.suffix == ".csv" else _lines
                yield from rows(file, names, all_classes)
    except OSError as problem:
        raise RunError(f"job.output must be a file that can be written; got {str(path)!r}: {problem}") from None


def _columns(part: Part, names: Sequence[str], all_classes: bool) -> Dict[str, List[Any]]:
    places = torch.arange(len(part.lengths))
    found: Dict[str, List[Any]] = {}
    if part.per_step:
        places = places.repeat_interleave(part.lengths)
    for column, values in zip(part.ids.columns, zip(*(part.ids.row(i) for i in range(len(part.lengths))))):
        found[column] = [values[i] for i in places.tolist()]
    if part.per_step:
        starts = (part.lengths.cumsum(0) - part.lengths)[places]
        found["step"] = (torch.arange(len(places)) - starts).tolist()
    answers = part.answers
    if answers.values is not None:
        found.update({f"predicted {name}": answers.values[:, i].tolist() for i, name in enumerate(names)})
        return found
    predicted, probabilities = answers.of_classes()
    found["predicted"] = [names[i] for i in predicted.tolist()]
    found["probability"] = probabilities.gather(-1, predicted[:, None])[:, 0].tolist()
    if all_classes:
        found.update({f"probability {name}": probabilities[:, i].tolist() for i, name in enumerate(names)})
    return found


def _rows(file: Any, names: Sequence[str], all_classes: bool) -> Iterator[Write]:
    writer, begun = csv.writer(file), []  # type: Any, List[bool]

    def write(part: Part) -> None:
        columns = _columns(part, names, all_classes)
        if not begun:
            writer.writerow(columns)
            begun.append(True)
        digits = "{:.15g}" if part.answers.values is not None else "{:.9g}"
        writer.writerows([digits.format(cell) if isinstance(cell, float) else cell for cell in row]
                         for row in zip(*columns.values()))

    yield write


def _lines(file: Any, names: Sequence[str], all_classes: bool) -> Iterator[Write]:
    def write(part: Part) -> None:
        columns = _columns(part, names, all_classes)
        for row in zip(*columns.values()):
            flat = dict(zip(columns, row))
            for kind, key in (("predicted", "predicted"), ("probability", "probabilities")):
                group = {name: flat.pop(f"{kind} {name}") for name in names if f"{kind} {name}" in columns}
                flat.update({key: group} if group else {})
            file.write(json.dumps(flat, ensure_ascii=False, allow_nan=False) + "\n")

    yield write


def _parquet(path: Any, names: Sequence[str], all_classes: bool) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writers: List[Any] = []

    def write(part: Part) -> None:
        table = pa.table(_columns(part, names, all_classes))
        if not writers:
            writers.append(pq.ParquetWriter(path, table.schema))
        writers[0].write_table(table)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()

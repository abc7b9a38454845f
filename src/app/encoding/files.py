"""A part of the output on disk: Parquet or safetensors."""

import io
from pathlib import Path
from typing import Any, Dict

import torch

from app.errors import RunError
from encoders.training.encode import Encoded
from myfla.models.sealed_file import write_sealed
from myfla.utils.atomic import write_atomic

__all__ = ["KIND", "require", "write_part"]

KIND = "myfla.embeddings"


def require(form: str) -> None:
    """Check that a format can be written here.

    Raises:
        RunError: a package is missing.
    """
    if form == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise RunError("job.format=parquet needs the package 'pyarrow'; pip install 'myfla[parquet]', or use "
                           "job.format=safetensors") from None


def write_part(path: Path, part: Encoded, per_step: bool) -> None:
    """Write a part, completely or not at all.

    Parquet has a row for each sequence: ``sequence`` (its number in the input, from 0), ``steps``, ``embedding``; or
    for each step: ``sequence``, ``step`` (from 0), ``embedding``; with names also ``name``. Safetensors has
    ``embeddings``, ``lengths``, and in its header ``first``, the number of the first sequence, and ``names``; read it
    with `myfla.models.sealed_file.read_sealed`.
    """
    if path.suffix == ".safetensors":
        facts: Dict[str, Any] = {"first": part.first, "names": part.names, "per_step": per_step}
        write_sealed(path, KIND, {"embeddings": part.embeddings, "lengths": part.lengths}, facts)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = torch.arange(part.first, part.first + len(part.lengths))
    names = part.names
    columns: Dict[str, Any] = {"sequence": numbers, "steps": part.lengths}
    if per_step:
        starts = part.lengths.cumsum(0) - part.lengths
        columns = {"sequence": numbers.repeat_interleave(part.lengths),
                   "step": torch.arange(len(part.embeddings)) - starts.repeat_interleave(part.lengths)}
        if names is not None:
            names = [names[i] for i in torch.arange(len(names)).repeat_interleave(part.lengths).tolist()]
    arrays = {name: pa.array(values.numpy()) for name, values in columns.items()}
    if names is not None:
        arrays["name"] = pa.array(names, pa.string())
    flat = pa.array(part.embeddings.numpy().reshape(-1))
    arrays["embedding"] = pa.FixedSizeListArray.from_arrays(flat, part.embeddings.shape[1])
    file = io.BytesIO()
    pq.write_table(pa.table(arrays), file)
    write_atomic(path, file.getvalue())

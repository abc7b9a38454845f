"""Reads raw data in the usual forms: arrays, lists, tensors, columns by name; one sequence or many."""

from typing import Any, List, Mapping, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders.batch import Layout
from encoders.errors import InputError
from encoders.pipeline import InputPipeline
from encoders.schema import InputSchema
from myfla.utils.tracing import tracing

__all__ = ["check_values", "open_batch", "place", "prepare", "read_sequences"]

WHO = "encoder"


def read_sequences(pipeline: InputPipeline, x: Any) -> List[Tensor]:
    """The sequences of ``x``, ``[T_i, D]`` float64 each, features in the pipeline's order (token ids ``[T_i]`` int64).

    Args:
        pipeline: of the encoder.
        x: one sequence or a list of sequences of any lengths, or a batch ``[B, T, D]`` without padding. A sequence is a
            tensor, a numpy array or nested lists ``[T, D]`` (``[T]`` for a single channel, and for token ids), None or
            NaN where a value is missing; or columns by name, in any order: a dict or a pandas DataFrame.

    Raises:
        InputError: other columns, another width, no numbers, no steps, or a missing value with ``missing="error"``.

    Example:
        >>> pipeline = InputPipeline.fit([torch.zeros(2, 2)])
        >>> [len(sequence) for sequence in read_sequences(pipeline, [[[1, 2]], [[1, 2], [3, 4]]])]
        [1, 2]
    """
    ids = pipeline.schema is None
    channels = 0 if pipeline.schema is None else len(pipeline.schema.features)
    depth = 1 if ids else 2
    if _by_name(x):
        parts = [x]
    else:
        found = _depth(x)
        single = not ids and channels == 1
        if found == depth or (single and found == 1):
            whole = single and found == 2 and any(_size(row) != 1 for row in x)  # several of one channel
            parts = list(x) if whole else [x]
        elif found == depth + 1:
            parts = list(x)
        else:
            wanted = "token ids [T]" if ids else f"[T, {channels}]"
            raise InputError(f"{WHO}: x must be a sequence {wanted} or a list of such; got {found} dimensions")
    return [_sequence(pipeline, part, i, len(parts)) for i, part in enumerate(parts)]


def open_batch(pipeline: InputPipeline, x: Any, given: Tuple[Any, ...]) -> Tuple[Tensor, Optional[List[int]]]:
    """A batch for `Encoder.forward`: tensors ``[B, T, D]``, and ``[B, T]`` of ids, are unchanged; all else is padded.

    Args:
        pipeline: of the encoder.
        x: as for `read_sequences`.
        given: lengths, attention_mask and cu_seqlens of the call, which are only for a single tensor.

    Returns:
        ``(x, lengths)``; None for the lengths of a tensor.
    """
    if isinstance(x, Tensor) and x.dim() == (2 if pipeline.schema is None else 3):
        _check_dtype(pipeline, x, f"{WHO}: x")
        return x, None
    if any(value is not None for value in given):
        raise InputError(f"{WHO}: x must be one tensor of a batch where lengths, attention_mask or cu_seqlens are "
                         f"given; got {_kind(x)}; leave them out: a list of sequences has lengths of its own")
    sequences = read_sequences(pipeline, x)
    if not sequences:
        raise InputError(f"{WHO}: x must have at least one sequence; got none")
    return pad_sequence(sequences, batch_first=True), [len(sequence) for sequence in sequences]


def place(x: Tensor, device: torch.device) -> Tensor:
    """Move a batch to the encoder's device.

    Raises:
        InputError: it is on the device ``meta``, without data, and the encoder is not.
    """
    if x.is_meta and device.type != "meta":
        raise InputError(f"{WHO}: x must hold data, on the encoder's device {device}; got a tensor on meta")
    return x.to(device)


def _check_dtype(pipeline: InputPipeline, x: Tensor, who: str) -> None:
    if pipeline.schema is None and (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
        raise InputError(f"{who} must be token ids, whole numbers; got {x.dtype}")
    if x.is_complex():
        raise InputError(f"{who} must be real numbers; got {x.dtype}; give real and imaginary parts as two channels")


def check_values(pipeline: InputPipeline, x: Tensor, first: int = 0, who: str = f"{WHO}: x") -> None:
    """Refuse missing values with ``missing="error"``, and infinite ones; ``x [..., T, D]`` without padding.

    Raises:
        InputError: names channel, step and value.
    """
    if pipeline.schema is None or tracing() or x.device.type == "meta":
        return
    wrong = x.isinf() if pipeline.missing != "error" else ~x.isfinite()
    if not bool(wrong.any()):
        return
    place = wrong.nonzero()[0].tolist()
    value, name = float(x[tuple(place)]), pipeline.schema.names[place[-1]]
    hint = "; train with data.missing=mean or data.missing=forward to replace missing values" if value != value else ""
    raise InputError(f"{who} must be finite, as in training; got {value} at step {place[-2] + first}, {name!r}{hint}")


def prepare(pipeline: InputPipeline, tokens: Tensor, layout: Layout, going_on: bool) -> Tensor:
    """Raw tokens, prepared for the encoder.

    Args:
        pipeline: the pipeline of the encoder.
        tokens: the result of `Layout.pack`: ``[B, T, ...]``, or ``[1, total, ...]`` with offsets.
        layout: the layout of the call.
        going_on: whether the call continues a cache or returns one.

    Raises:
        InputError: another width than the pipeline's, missing values with ``missing="error"``, or pieces of sequences
            that must be complete.
    """
    if pipeline.schema is None:
        return tokens if tokens.dtype in (torch.int32, torch.int64) else tokens.long()
    channels = len(pipeline.schema.features)
    if tokens.shape[-1] != channels:
        raise InputError(f"{WHO}: x must have {channels} channels: {pipeline.schema.describe()}; got "
                         f"{tokens.shape[-1]}")
    check_values(pipeline, tokens)
    if going_on and pipeline.needs_whole:
        if pipeline.own_scale:
            raise InputError(f"{WHO}: cache must be left out for an encoder trained with data.own_scale=true: the "
                             "scale of a sequence is known at its end; train with data.own_scale=false")
        if not tracing() and not tokens.is_meta and bool(tokens.isnan().any()):
            raise InputError(f"{WHO}: x must be without missing values in pieces of sequences: with "
                             "data.missing=forward the value before may stand in an earlier piece; fill them in, or "
                             "give whole sequences")
    if layout.cu_seqlens is None or not pipeline.needs_whole or tokens.is_meta:
        return pipeline.transform(tokens)
    if tracing():
        raise InputError(f"{WHO}: lengths must be left out in a recorded graph of an encoder trained with "
                         "data.own_scale=true or data.missing=forward; record whole sequences without pads")
    parts = tokens[0].split((layout.cu_seqlens[1:] - layout.cu_seqlens[:-1]).tolist())
    return torch.cat([pipeline.transform(part) if len(part) else pipeline.transform(tokens[0, :1])[:0]
                      for part in parts])[None]


def _sequence(pipeline: InputPipeline, part: Any, number: int, count: int) -> Tensor:
    who = f"{WHO}: x" if count == 1 else f"{WHO}: sequence {number}"
    if pipeline.schema is None:
        x = _tensor(part, who)
        _check_dtype(pipeline, x, who)
        if x.dim() != 1:
            raise InputError(f"{who} must be token ids [T]; got {list(x.shape)} {x.dtype}")
        return x.long()
    x = _columns(pipeline.schema, part, who) if _by_name(part) else _tensor(part, who)
    channels = len(pipeline.schema.features)
    x = x[:, None] if x.dim() == 1 and channels == 1 else x
    if x.dim() != 2 or x.shape[1] != channels:
        raise InputError(f"{who} must have shape [T, {channels}]: {pipeline.schema.describe()}; got {list(x.shape)}")
    if not len(x):
        raise InputError(f"{who} must have at least one step; got none")
    _check_dtype(pipeline, x, who)
    x = x.double()
    check_values(pipeline, x, 0, who)
    return x


def _columns(schema: InputSchema, part: Any, who: str) -> Tensor:
    names = [str(name) for name in part]
    keys = list(part.keys())
    values = [_tensor(part[keys[place]], f"{who}[{names[place]!r}]") for place in schema.match(names, who)]
    if len({tuple(value.shape) for value in values}) != 1 or values[0].dim() != 1:
        raise InputError(f"{who} must have columns [T] of one length; got {[list(value.shape) for value in values]}")
    return torch.stack([value.double() for value in values], 1)


def _tensor(values: Any, who: str) -> Tensor:
    if isinstance(values, Tensor):
        if values.is_meta:
            raise InputError(f"{who} must hold data; got a tensor on the device meta")
        return values
    values = values.to_numpy() if hasattr(values, "to_numpy") else values  # a column of pandas or polars
    try:
        if hasattr(values, "astype"):
            # A copy: torch takes neither negative strides nor other byte orders, and not every kind of integer.
            return torch.from_numpy(values.astype("int64" if values.dtype.kind in "iu" else "float64"))
        if isinstance(values, (list, tuple)) and len(values) and hasattr(values[0], "shape"):
            return torch.stack([_tensor(value, who) for value in values])
        try:
            found = torch.tensor(values)
            return torch.tensor(values, dtype=torch.float64) if found.is_floating_point() else found
        except (TypeError, RuntimeError):  # None where a value is missing
            return torch.tensor(_with_nan(values), dtype=torch.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as problem:
        raise InputError(f"{who} must be numbers; {str(problem).splitlines()[0]}") from None


def _with_nan(values: Any) -> Any:
    if isinstance(values, (list, tuple)):
        return [_with_nan(value) for value in values]
    return float("nan") if values is None else values


def _by_name(x: Any) -> bool:
    return isinstance(x, Mapping) or (hasattr(x, "columns") and hasattr(x, "keys"))


def _depth(x: Any) -> int:
    """Number of dimensions: of an array its own, of a list one more than of its items."""
    if hasattr(x, "ndim") and not (x.ndim == 1 and str(getattr(x, "dtype", "")) == "object"):
        return int(x.ndim)
    if isinstance(x, (list, tuple)) or hasattr(x, "ndim"):
        if not len(x):
            return 1
        return 1 + (2 if _by_name(x[0]) else _depth(x[0]))
    return 0


def _size(row: Any) -> int:
    return len(row) if hasattr(row, "__len__") else 1


def _kind(x: Any) -> str:
    return f"{type(x).__name__} {list(x.shape)}" if hasattr(x, "shape") else type(x).__name__

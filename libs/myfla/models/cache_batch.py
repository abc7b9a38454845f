"""Joining caches into one batch, and picking rows out of it."""

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch

from myfla.models.attention_state import pad_front
from myfla.models.cache_layer import FIELDS, FLALayer
from myfla.models.state_tree import join_tensors, map_tensors
from myfla.utils.errors import CacheError, message
from myfla.utils.tracing import tracing

__all__ = ["join_layers", "row_index"]

Rows = Union[torch.Tensor, Sequence[int], slice, int]


def row_index(who: str, rows: Rows, batch: Optional[int]) -> torch.Tensor:
    """Rows as an int64 tensor of numbers from 0 to ``batch - 1``.

    Args:
        who: the caller, for the message.
        rows: integers, a bool mask ``[batch]``, a slice, or one integer; negative numbers count from the end.
        batch: number of rows there are; None for a cache that holds no state, where every number is accepted.
    """
    if isinstance(rows, slice):
        rows = list(range(*rows.indices(batch or 0)))
    try:
        index = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        raise CacheError(message(who, "rows", "must be integers", rows)) from None
    if index.is_meta:
        raise CacheError(message(who, "rows", "must have values", "a tensor on the device meta"))
    if index.dtype == torch.bool:
        if batch is not None and index.shape != (batch,):
            raise CacheError(message(who, "rows", f"as a mask must have shape [{batch}]", list(index.shape)))
        index = index.nonzero().flatten()
    if index.numel() and (index.is_floating_point() or index.is_complex()):
        raise CacheError(message(who, "rows", "must be integers", index.dtype))
    index = index.reshape(-1).to(torch.int64)
    if batch is not None and index.numel() and not tracing():
        low, high = int(index.min()), int(index.max())
        if low < -batch or high >= batch:
            raise CacheError(message(who, "rows", f"must lie in 0..{batch - 1}", low if low < -batch else high))
        index = torch.where(index < 0, index + batch, index)
    return index


def join_layers(layers: Sequence[FLALayer], sizes: Sequence[int], index: int) -> FLALayer:
    """One layer whose rows are those of several, in order.

    A layer without state is a sequence that has not begun: its states are zeros, its length 0.

    Args:
        layers: the layer of that number in each cache.
        sizes: rows of each.
        index: the layer's number, for messages.

    Raises:
        CacheError: the states differ in kind, size, dtype or device.
    """
    begun = [layer for layer in layers if layer.state is not None]
    new = FLALayer()
    new._seen_tokens = max(layer._seen_tokens for layer in layers)
    if begun:
        window = {layer.window_size for layer in begun}
        if len(window) > 1:
            raise CacheError(message("Cache.stack", f"layer {index} window_size", "must be equal in all", window))
        new.window_size = begun[0].window_size
        new.is_sliding, new.is_initialized = new.window_size is not None, True
        new.state = {field: _join_field(field, layers, begun[0].state or {}, sizes, index) for field in FIELDS}
    late = [new._seen_tokens - layer._seen_tokens for layer in layers]
    if any(late) or any(layer._late is not None for layer in layers):
        new._late = torch.cat([_rows(layer._late, size, extra) for layer, size, extra in zip(layers, sizes, late)])
    if any(late) or any(layer._pads is not None for layer in layers):
        new._pads = torch.cat([_rows(layer._pads, size, extra) for layer, size, extra in zip(layers, sizes, late)])
    return new


def _rows(counts: Optional[torch.Tensor], size: int, extra: int) -> torch.Tensor:
    return torch.full((size,), extra, dtype=torch.int64) if counts is None else counts.cpu() + extra


def _join_field(field: str, layers: Sequence[FLALayer], model: Dict[str, Any], sizes: Sequence[int], index: int) -> Any:
    where = f"layer {index} {field}"
    states = [
        _zeros(model[field], size) if layer.state is None else layer.state[field]
        for layer, size in zip(layers, sizes)
    ]
    if field == "attn_state" and all(isinstance(state, (tuple, list)) for state in states):  # rows end with tokens
        parts = [pad_front(tensors) for tensors in zip(*states)]
        states = [tuple(tensors) for tensors in zip(*parts)]
    return join_tensors(_cat, states, "Cache.stack", where)


def _zeros(tree: Any, size: int) -> Any:
    return map_tensors(lambda t: t.new_zeros((size, *t.shape[1:])), tree)


def _cat(tensors: List[torch.Tensor], where: str) -> torch.Tensor:
    first = tensors[0]
    for name, of in (("size", _tail), ("dtype", _dtype), ("device", _device)):
        found = {of(t) for t in tensors}
        if len(found) > 1:
            got = sorted(str(f) for f in found)
            raise CacheError(message("Cache.stack", f"{where} {name}", "must be equal in all caches", got))
    return torch.cat(tensors) if len(tensors) > 1 else first


def _tail(tensor: torch.Tensor) -> Tuple[int, ...]:
    return tuple(tensor.shape[1:])


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype


def _device(tensor: torch.Tensor) -> torch.device:
    return tensor.device


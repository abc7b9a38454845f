"""A `Cache` as a file: its tensors, its structure, and what a reader can require."""

from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import torch

from myfla.models.cache_layer import FIELDS, FLALayer
from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.utils.errors import CacheError, message

__all__ = ["KIND", "LAYOUT", "VERSION", "read_cache", "write_cache"]

KIND = "myfla.cache"
VERSION = 1
LAYOUT = "N,HV,K,V"


def write_cache(path: Union[str, Path], layers: List[FLALayer], about: Dict[str, Any]) -> None:
    """Write layers to ``path``; ``about`` holds the cache's other facts (fingerprint, groups)."""
    tensors: Dict[str, torch.Tensor] = {}
    facts = {
        "version": VERSION,
        "layout": LAYOUT,
        "about": about,
        "layers": [_pack_layer(layer, f"layers.{i}", tensors) for i, layer in enumerate(layers)],
    }
    write_sealed(path, KIND, tensors, facts)


def read_cache(path: Union[str, Path]) -> Tuple[List[FLALayer], Dict[str, Any]]:
    """What `write_cache` wrote.

    Raises:
        CacheError: the file is missing, foreign, damaged, of a newer version or of another state layout.
    """
    tensors, facts = read_sealed(path, KIND, CacheError)
    who = f"Cache.load({str(path)!r})"
    if facts.get("version") != VERSION:
        raise CacheError(message(who, "version", f"must be {VERSION}", facts.get("version"), "write it anew"))
    if facts.get("layout") != LAYOUT:
        raise CacheError(message(who, "layout", f"must be {LAYOUT!r}", facts.get("layout")))
    try:
        return [_unpack_layer(entry, tensors) for entry in facts["layers"]], facts["about"]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CacheError(message(who, "layers", "must describe the states in the file", str(problem))) from None


def _pack_layer(layer: FLALayer, prefix: str, tensors: Dict[str, torch.Tensor]) -> Dict[str, Any]:
    entry: Dict[str, Any] = {
        "seen_tokens": layer._seen_tokens,
        "window_size": layer.window_size,
        "is_initialized": layer.is_initialized,
        "state": None,
        "pads": _pack(layer._pads, f"{prefix}.pads", tensors),
        "late": _pack(layer._late, f"{prefix}.late", tensors),
    }
    if layer.state is not None:
        entry["state"] = {field: _pack(value, f"{prefix}.{field}", tensors) for field, value in layer.state.items()}
    return entry


def _unpack_layer(entry: Dict[str, Any], tensors: Dict[str, torch.Tensor]) -> FLALayer:
    layer = FLALayer()
    layer._seen_tokens, layer.window_size = int(entry["seen_tokens"]), entry["window_size"]
    layer.is_initialized, layer.is_sliding = bool(entry["is_initialized"]), layer.window_size is not None
    layer._pads, layer._late = _unpack(entry["pads"], tensors), _unpack(entry["late"], tensors)
    if entry["state"] is not None:
        layer.state = {field: _unpack(entry["state"][field], tensors) for field in FIELDS}
    return layer


def _pack(tree: Any, name: str, tensors: Dict[str, torch.Tensor]) -> Any:
    """A structure as JSON: tensors by name, containers marked with their kind."""
    if isinstance(tree, torch.Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": {key: _pack(child, f"{name}.{key}", tensors) for key, child in tree.items()}}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_pack(child, f"{name}.{i}", tensors) for i, child in enumerate(tree)]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise CacheError(message("Cache.save", name, "must be tensors, tuples, lists or dicts", type(tree).__name__))


def _unpack(packed: Any, tensors: Dict[str, torch.Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(child, tensors) for key, child in content.items()}
    return {"tuple": tuple, "list": list}[kind](_unpack(child, tensors) for child in content)

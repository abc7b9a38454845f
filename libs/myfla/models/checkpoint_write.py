"""Writing checkpoint folders as the official library reads them, each file completely or not at all."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, List, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from myfla.models.checkpoint import INDEX_NAME, WEIGHTS_NAME
from myfla.utils.atomic import replacing
from myfla.utils.errors import value_error

__all__ = ["write_weights"]

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SHARD = re.compile(r"^model-\d{5}-of-\d{5}\.safetensors$")


def write_weights(
    folder: Union[str, Path], tensors: Dict[str, torch.Tensor], max_shard_size: Union[int, str] = "5GB"
) -> List[str]:
    """Write tensors as ``model.safetensors``, or in several files with an index; older weight files are removed.

    Args:
        folder: an existing folder.
        tensors: by name.
        max_shard_size: bytes in one file, as a number or like ``"200MB"``; a larger tensor stands alone.

    Returns:
        Names of the files.

    Raises:
        ValueError: a size that cannot be read.
        OSError: the folder is missing, read-only or full.
    """
    folder = Path(folder)
    parts = _split(tensors, _bytes(max_shard_size))
    if len(parts) == 1:
        names = [WEIGHTS_NAME]
    else:
        names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    with ExitStack() as last:  # nothing takes its place before everything is written; the index comes last
        if len(parts) > 1:
            total = sum(_size(tensor) for tensor in tensors.values())
            where = {key: name for name, part in zip(names, parts) for key in part}
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True)
            last.enter_context(replacing(folder / INDEX_NAME)).write_text(text + "\n", encoding="utf-8")
        for name, part in zip(names, parts):
            _save(_plain(part), folder / name, last.enter_context(replacing(folder / name)))
        if len(parts) > 1 and (folder / INDEX_NAME).exists():
            # Runs first: files of two models under one index would be read as one, without it they are refused.
            last.callback((folder / INDEX_NAME).unlink)
    written = {*names, INDEX_NAME} if len(parts) > 1 else {*names}
    for path in folder.iterdir():
        if path.name not in written and (path.name in (WEIGHTS_NAME, INDEX_NAME) or SHARD.match(path.name)):
            path.unlink()
    return names


def _save(tensors: Dict[str, torch.Tensor], path: Path, temporary: Path) -> None:
    try:
        save_file(tensors, str(temporary), {"format": "pt"})
    except SafetensorError as problem:  # a full disk comes as this, too
        raise OSError(f"save_pretrained: {path} must be written completely; got: {problem}; the old files are "
                      "unchanged") from None


def _plain(tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """On the CPU, contiguous, each in separate memory, as safetensors needs them."""
    plain: Dict[str, torch.Tensor] = {}
    taken = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
        place = storage.data_ptr() if tensor.numel() else name
        plain[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return plain


def _split(tensors: Dict[str, torch.Tensor], limit: int) -> List[Dict[str, torch.Tensor]]:
    parts: List[Dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = _size(tensor)
        if parts[-1] and filled + size > limit:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += size
    return parts


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(size: Union[int, str]) -> int:
    found = re.match(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$", str(size))
    limit = int(float(found.group(1)) * UNITS.get(found.group(2).upper(), 0)) if found else 0
    if isinstance(size, bool) or limit < 1:
        raise value_error("save_pretrained", "max_shard_size", "must be bytes, or like '200MB'", size)
    return limit

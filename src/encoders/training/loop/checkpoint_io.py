"""Lightning checkpoints without pickle: tensors as safetensors, the rest as JSON, in one sealed file."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.utils.errors import CheckpointError

__all__ = ["SafeCheckpointIO", "pack", "unpack"]

KIND = "myfla.training_checkpoint"


class SafeCheckpointIO(CheckpointIO):
    """Writes and reads the checkpoints of ``Trainer.save_checkpoint``; reading a file never runs code from it."""

    def save_checkpoint(self, checkpoint: Dict[str, Any], path: Union[str, Path], storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tensors: Dict[str, torch.Tensor] = {}
        facts = pack(checkpoint, tensors)
        write_sealed(path, KIND, tensors, {"checkpoint": facts})

    def load_checkpoint(
        self, path: Union[str, Path], map_location: Optional[Any] = None, weights_only: Optional[bool] = None
    ) -> Dict[str, Any]:
        tensors, facts = read_sealed(path, KIND, CheckpointError)
        return unpack(facts["checkpoint"], tensors)

    def remove_checkpoint(self, path: Union[str, Path]) -> None:
        Path(path).unlink()


def pack(value: Any, tensors: Dict[str, torch.Tensor]) -> Any:
    """A structure as JSON values, its tensors moved out.

    Args:
        value: nested dicts (any plain keys), lists and tuples of tensors, numbers, strings, booleans and None.
        tensors: receives every tensor under the name that stands for it.

    Returns:
        lists that start with a mark: ``["tensor", name]``, ``["dict", [key, value], ...]``, ``["list", ...]``,
        ``["tuple", ...]``, ``["value", x]``.

    Raises:
        TypeError: an object of another kind; it would need pickle.
    """
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.clone()  # tied tensors share memory, which safetensors refuses
        return ["tensor", name]
    if isinstance(value, dict):
        return ["dict", *([pack(key, tensors), pack(item, tensors)] for key, item in value.items())]
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return ["tuple" if isinstance(value, tuple) else "list", *(pack(item, tensors) for item in value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ["value", value]
    kind = type(value).__name__
    raise TypeError(f"checkpoint: a value of type {kind} cannot be saved without pickle; keep to numbers and tensors")


def unpack(facts: List[Any], tensors: Dict[str, torch.Tensor]) -> Any:
    """The inverse of `pack`."""
    mark, *rest = facts
    if mark == "tensor":
        return tensors[rest[0]]
    if mark == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in rest}
    if mark in ("list", "tuple"):
        items = [unpack(item, tensors) for item in rest]
        return tuple(items) if mark == "tuple" else items
    return rest[0]

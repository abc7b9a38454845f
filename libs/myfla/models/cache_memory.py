"""Copies of states that must not share memory."""

from typing import Optional

import torch

__all__ = ["own_state"]


def own_state(field: str, tensor: torch.Tensor, like: Optional[torch.Tensor] = None) -> torch.Tensor:
    """A recurrent state in separate memory, also where it is only in part that of ``like``; others as they are."""
    shared = like is None or _memory(tensor) == _memory(like)
    return tensor.clone(memory_format=torch.contiguous_format) if field == "recurrent_state" and shared else tensor


def _memory(tensor: torch.Tensor) -> int:
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
    return storage.data_ptr()

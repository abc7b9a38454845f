"""The dtypes of computations. Ops choose their dtypes: autocast must not lower those of products inside them."""

import functools
from typing import Any, Callable, Optional

import torch

_BY_DEVICE = hasattr(torch, "get_autocast_dtype")  # from this version on is_autocast_enabled takes a device


def accumulation_dtype(*tensors: Optional[torch.Tensor]) -> torch.dtype:
    """The dtype of states and sums: float64 if any tensor is float64, else float32.

    Example:
        >>> accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    for t in tensors:
        if t is not None and t.dtype == torch.float64:
            return torch.float64
    return torch.float32


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64 (Apple's MPS does not)."""
    return device.type != "mps"


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a device type, in every version of PyTorch; never for ``meta``, which has none.

    Example:
        >>> autocast_enabled("cpu"), autocast_enabled("meta")
        (False, False)
    """
    if device == "meta":
        return False
    if _BY_DEVICE:
        return torch.is_autocast_enabled(device)
    return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def without_autocast(function: Callable) -> Callable:
    """Decorate a function whose first argument is a tensor so that autocast is off inside, on that tensor's device."""

    @functools.wraps(function)
    def wrapped(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        device = first.device.type
        if not autocast_enabled(device):
            return function(first, *args, **kwargs)
        with torch.autocast(device_type=device, enabled=False):
            return function(first, *args, **kwargs)

    return wrapped

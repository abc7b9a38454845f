"""Ops choose their own precision: autocast must not lower the products inside them."""

import functools
from typing import Any, Callable

import torch

_BY_DEVICE = hasattr(torch, "get_autocast_dtype")  # from here on is_autocast_enabled takes a device


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

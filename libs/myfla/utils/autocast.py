"""Ops choose their own precision: autocast must not lower the products inside them."""

import functools
from typing import Any, Callable

import torch


def without_autocast(function: Callable) -> Callable:
    """Decorate a function of tensors so that autocast is off inside, on the device of its first tensor argument."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not (torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()):
            return function(*args, **kwargs)
        device = next(x.device.type for x in args if isinstance(x, torch.Tensor))
        with torch.autocast(device_type=device, enabled=False):
            return function(*args, **kwargs)

    return wrapped

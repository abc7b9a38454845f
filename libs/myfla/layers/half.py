"""float16 on a CPU whose PyTorch (before 2.2) has no float16 products there: computed in float32 and rounded once."""

import functools
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["project", "silu"]


def project(linear: Any, x: torch.Tensor) -> torch.Tensor:
    """``linear(x)``, of an `nn.Linear`, or of an `nn.Sequential` of them.

    Example:
        >>> project(nn.Linear(4, 2), torch.zeros(1, 3, 4)).shape
        torch.Size([1, 3, 2])
    """
    if not _needs_float32(x):
        return linear(x)
    if isinstance(linear, nn.Sequential):
        for part in linear:
            x = project(part, x)
        return x
    bias = None if linear.bias is None else linear.bias.float()
    return F.linear(x.float(), linear.weight.float(), bias).to(x.dtype)


def silu(x: torch.Tensor) -> torch.Tensor:
    """``x * sigmoid(x)``."""
    return F.silu(x.float()).to(x.dtype) if _needs_float32(x) else F.silu(x)


def _needs_float32(x: torch.Tensor) -> bool:
    return x.dtype == torch.float16 and x.device.type == "cpu" and not _half_products()


@functools.lru_cache(maxsize=None)
def _half_products() -> bool:
    one = torch.ones(1, 1, dtype=torch.float16)
    try:
        F.silu(F.linear(one, one))
    except RuntimeError:
        return False
    return True

"""Projections with little overhead. Where PyTorch has no float16 products on a CPU (before 2.2), they are computed in
float32 and rounded once."""

import functools
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.modules import module as modules

from myfla.utils.tracing import compiling

__all__ = ["is_free", "project", "silu"]

_EVERYWHERE = [
    getattr(modules, f"_global_{name}_hooks", {}) for name in ("forward", "forward_pre", "backward", "backward_pre")
]


_ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.Identity)
_SHORT = (nn.Linear, nn.Sequential, *_ACTIVATIONS)


def is_free(module: Any) -> bool:
    """Whether a module's forward may be computed without calling the module: it has no hooks, and no replaced forward.

    Example:
        >>> is_free(nn.Linear(4, 2))
        True
    """
    own = module.__dict__
    return not (
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own.get("_backward_pre_hooks")
        or "forward" in own or any(_EVERYWHERE)
    )  # fmt: skip


def project(linear: Any, x: torch.Tensor) -> torch.Tensor:
    """``linear(x)``, for an `nn.Linear` or an `nn.Sequential` of linear layers and activations.

    A call of the module takes as long as a product of one row.

    Example:
        >>> project(nn.Linear(4, 2), torch.zeros(1, 3, 4)).shape
        torch.Size([1, 3, 2])
    """
    half, kind = _needs_float32(x), type(linear)
    short = half or (kind in _SHORT and not compiling() and is_free(linear))
    if kind is nn.Sequential and short:
        for part in linear._modules.values():
            x = project(part, x)
        return x
    if half:
        return linear(x.float()).to(x.dtype) if kind in _ACTIVATIONS else _linear_in_float32(linear, x)
    weight = linear._parameters.get("weight") if short else None
    if weight is not None and "bias" in linear._parameters:
        return F.linear(x, weight, linear._parameters["bias"])
    return linear.forward(x) if short and kind in _ACTIVATIONS else linear(x)


def _linear_in_float32(linear: Any, x: torch.Tensor) -> torch.Tensor:
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

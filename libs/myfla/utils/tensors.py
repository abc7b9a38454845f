"""Checks of an argument before its shape: that it is a tensor, and that its data can be used."""

import math
from typing import Any, Optional

import torch

from myfla.utils.errors import value_error
from myfla.utils.tracing import tracing

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def check_tensor(who: str, field: str, x: Any, beside: Optional[torch.Tensor] = None, name: str = "x") -> None:
    """Refuse an argument that is not a tensor, or is on another device.

    Args:
        who, field: the caller and its argument, for the message.
        x: the argument.
        beside: a tensor on whose device it must be.
        name: of that tensor, for the message.

    Example:
        >>> check_tensor("norm", "x", torch.zeros(1))
    """
    if not isinstance(x, torch.Tensor):
        raise value_error(who, field, "must be a tensor", type(x).__name__)
    if beside is not None and x.device != beside.device:
        raise value_error(who, field, f"must be on the device of {name}, {beside.device}", str(x.device))


def check_integers(who: str, field: str, x: Any, rank: int) -> None:
    """Refuse an argument that is not a tensor of integers with this many axes, or has no values.

    Example:
        >>> check_integers("prepare_lens", "cu_seqlens", torch.tensor([0, 2]), rank=1)
    """
    check_tensor(who, field, x)
    if x.dtype not in INTEGERS:
        raise value_error(who, field, "must hold integers", x.dtype)
    if x.dim() != rank:
        raise value_error(who, field, "must have one axis" if rank == 1 else f"must have {rank} axes", tuple(x.shape))


def check_size(who: str, field: str, x: Any, low: int = 0) -> None:
    """Refuse an argument that is not a whole number from ``low`` that a tensor's size can have; a compiler's symbol is
    one.

    Example:
        >>> check_size("pad_input", "seq_len", 3)
    """
    if tracing() or isinstance(x, torch.Tensor) or type(x).__name__ == "SymInt":
        return
    if isinstance(x, bool) or not isinstance(x, int) or not low <= x < 1 << 62:
        raise value_error(who, field, f"must be a whole number from {low}", x)


def check_scale(who: str, scale: Any, size: int) -> float:
    """The factor on queries, ``size ** -0.5`` by default.

    Example:
        >>> check_scale("chunk_gdn", None, 4)
        0.5
    """
    if scale is None:
        return size**-0.5
    try:
        number = float(scale)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number) or isinstance(scale, str):
        raise value_error(who, "scale", "must be a finite number", scale)
    return number

"""Checks of constructor arguments that several layers have."""

import math
from typing import Any, Mapping, Optional, Sequence

import torch

from myfla.layers.layer_inputs import check_positive
from myfla.utils.errors import value_error

__all__ = ["MODES", "check_heads", "check_settings", "expanded", "split_heads_of", "wide_dtype"]

MODES = ("chunk", "fused_recurrent")


def check_settings(
    who: str, layer: Any, sizes: Sequence[str], flags: Sequence[str], choices: Mapping[str, Sequence[Any]]
) -> None:
    """Refuse arguments, set as attributes of ``layer``, that are out of range.

    Args:
        who: the layer's name.
        layer: it.
        sizes: attributes that must be positive integers.
        flags: attributes that must be True or False.
        choices: attributes and what they may be. ``mode``, ``layer_idx`` and ``norm_eps`` are checked in any case.
    """
    check_positive(who, **{field: getattr(layer, field) for field in sizes})
    for field in flags:
        if not isinstance(getattr(layer, field), bool):
            raise value_error(who, field, "must be True or False", getattr(layer, field))
    for field, known in {"mode": MODES, **choices}.items():
        if getattr(layer, field) not in known:
            raise value_error(who, field, f"must be one of {', '.join(map(str, known))}", getattr(layer, field))
    index, eps = layer.layer_idx, layer.norm_eps
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or index < 0):
        raise value_error(who, "layer_idx", "must be an integer from 0, or None", index)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not math.isfinite(eps) or eps < 0:
        raise value_error(who, "norm_eps", "must be a finite number from 0", eps)


def check_heads(who: str, heads: int, value_heads: int) -> None:
    """Refuse value heads that are not a multiple of the heads of queries and keys."""
    if value_heads % heads:
        hint = f"use {heads}, {2 * heads}, {3 * heads}"
        raise value_error(who, "num_v_heads", f"must be a multiple of num_heads={heads}", value_heads, hint)


def expanded(who: str, field: str, factor: Any, size: int, size_field: str) -> int:
    """``size * factor``, which must be a positive integer up to rounding.

    Args:
        who: the layer's name.
        field: the factor's name, ``expand_v`` or ``expand_k``.
        factor: it.
        size: what it multiplies.
        size_field: the name of that.
    """
    number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if not number or not math.isfinite(factor) or factor <= 0:
        raise value_error(who, field, "must be a positive number", factor)
    product = round(size * factor)
    if product < 1 or not math.isclose(size * factor, product, rel_tol=1e-5):
        hint = f"use {max(product, 1) / size:.6g}"
        raise value_error(who, field, f"times {size_field}={size} must be an integer", factor, hint)
    return product


def split_heads_of(who: str, field: str, size: int, heads: int) -> int:
    """``size / heads``, which must be an integer."""
    if size % heads:
        raise value_error(who, field, f"must be a multiple of num_heads={heads}", size)
    return size // heads


def wide_dtype(dtype: Optional[torch.dtype]) -> torch.dtype:
    """float32, or float64 for a float64 layer: what ``A_log`` and norms without a gate are kept in."""
    return torch.float64 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.float32

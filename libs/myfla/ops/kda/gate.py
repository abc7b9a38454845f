"""Kimi Delta Attention's decay gate, from what the layer projects.

Log decay of one step and channel: ``g = -exp(A_log) * softplus(a + dt_bias)``, or, kept above a bound,
``g = lower_bound * sigmoid(exp(A_log) * (a + dt_bias))`` (arXiv 2510.26692). ``A_log`` is of a head, ``dt_bias`` of a
channel.
"""

from typing import Optional

import torch
import torch.nn.functional as F

from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

__all__ = ["fused_kda_gate", "naive_kda_gate", "naive_kda_lowerbound_gate"]


def naive_kda_gate(
    g: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: Optional[torch.Tensor] = None,
    output_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """Log decay ``-exp(A_log) * softplus(g + dt_bias)``.

    Args:
        g: ``[..., H, K]`` pre-activation.
        A_log: ``[H]``.
        dt_bias: ``[H * K]`` or None.
        output_dtype: dtype of the result; by default what it is computed in, float32 or, if any input is, float64.

    Returns:
        ``[..., H, K]``, at most 0.

    Example:
        >>> naive_kda_gate(torch.zeros(1, 1), torch.zeros(1))
        tensor([[-0.6931]])
    """
    _check("naive_kda_gate", g, A_log, dt_bias)
    dtype = accumulation_dtype(g, A_log, dt_bias)
    decay = -A_log.to(dtype).exp().reshape(-1, 1) * F.softplus(_biased(g, dt_bias, dtype))
    return decay if output_dtype is None else decay.to(output_dtype)


def naive_kda_lowerbound_gate(
    g: torch.Tensor,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    lower_bound: float = -5.0,
    output_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """Log decay ``lower_bound * sigmoid(exp(A_log) * (g + dt_bias))``.

    Args:
        g: ``[..., H, K]`` pre-activation.
        A_log: ``[H]``; zeros if None.
        dt_bias: ``[H * K]`` or None.
        lower_bound: the least log decay.
        output_dtype: dtype of the result; by default what it is computed in, float32 or, if any input is, float64.

    Returns:
        ``[..., H, K]``, between ``lower_bound`` and 0.

    Example:
        >>> naive_kda_lowerbound_gate(torch.zeros(1, 1))
        tensor([[-2.5000]])
    """
    _check("naive_kda_lowerbound_gate", g, A_log, dt_bias)
    if not isinstance(lower_bound, (int, float)) or not lower_bound < 0:
        raise value_error("naive_kda_lowerbound_gate", "lower_bound", "must be a negative number", lower_bound)
    dtype = accumulation_dtype(g, A_log, dt_bias)
    x = _biased(g, dt_bias, dtype)
    x = x if A_log is None else A_log.to(dtype).exp().reshape(-1, 1) * x
    decay = lower_bound * x.sigmoid()
    return decay if output_dtype is None else decay.to(output_dtype)


def fused_kda_gate(
    g: torch.Tensor,
    A_log: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    lower_bound: Optional[float] = None,
    output_dtype: Optional[torch.dtype] = None,
) -> torch.Tensor:
    """The log decay of KDA: `naive_kda_gate`, or with a ``lower_bound`` `naive_kda_lowerbound_gate`.

    Args:
        g: ``[..., H, K]``, a projection of the input.
        A_log: ``[H]``; may be None with a ``lower_bound``.
        dt_bias: ``[H * K]``, added to g; or None.
        lower_bound: the smallest log decay, a negative number; None for none.
        output_dtype: dtype of the result; float32 (float64 for float64) if not given.

    Returns:
        ``[..., H, K]``, at most 0; differentiable in all tensors.

    Raises:
        ValueError: shapes do not fit, ``lower_bound`` is not negative, or ``A_log`` is missing.

    Example:
        >>> fused_kda_gate(torch.zeros(1, 1), torch.zeros(1), lower_bound=-4.0)
        tensor([[-2.]])
    """
    if lower_bound is not None:
        return naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound, output_dtype)
    if A_log is None:
        raise value_error("fused_kda_gate", "A_log", "is required without lower_bound", None, "pass A_log [H]")
    return naive_kda_gate(g, A_log, dt_bias, output_dtype)


def _biased(g: torch.Tensor, dt_bias: Optional[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """``g + dt_bias [H * K]``, ``[..., H, K]``."""
    return g.to(dtype) if dt_bias is None else g.to(dtype) + dt_bias.to(dtype).view(g.shape[-2:])


def _check(who: str, g: torch.Tensor, A_log: Optional[torch.Tensor], dt_bias: Optional[torch.Tensor]) -> None:
    check_tensor(who, "g", g)
    if g.dim() < 2 or not g.is_floating_point():
        raise value_error(who, "g", "must be floating point, of shape [..., H, K]", f"{g.dtype} {tuple(g.shape)}")
    heads, key = g.shape[-2:]
    for name, x, size in (("A_log", A_log, heads), ("dt_bias", dt_bias, heads * key)):
        if x is None:
            continue
        check_tensor(who, name, x, g, "g")
        if x.numel() != size or not x.is_floating_point():
            raise value_error(who, name, f"must hold {size} floating point numbers", f"{x.dtype} {tuple(x.shape)}")

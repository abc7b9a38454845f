"""The gated norms of Mamba-2: ``norm(x) * silu(z)`` or ``norm(x * silu(z))``, in groups.

Dao and Gu, 2024, arXiv 2405.21060. The layers of this library use `myfla.modules.fused_norm_gate`.
"""

from typing import Any, Optional

import torch
import torch.nn.functional as F

from myfla.modules.norm_base import NormBase
from myfla.modules.norm_core import normalise
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

__all__ = ["LayerNormGated", "RMSNormGated", "layernorm_fn", "rms_norm_ref", "rmsnorm_fn"]


def layernorm_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    z: Optional[torch.Tensor] = None,
    eps: float = 1e-6,
    group_size: Optional[int] = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> torch.Tensor:
    """Norm over groups of the last axis, with a gate after or before it.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``.
        bias: ``[D]`` or None.
        z: shaped as x; no gate without it.
        eps: added to the variance.
        group_size: channels of a group; all D if not given.
        norm_before_gate: ``norm(x) * silu(z)``; otherwise ``norm(x * silu(z))``.
        is_rms_norm: do not subtract the mean.

    Returns:
        ``[..., D]`` in the dtype of x.

    Example:
        >>> y = layernorm_fn(torch.randn(2, 8), torch.ones(8), None, torch.randn(2, 8), group_size=4)
    """
    return _run("layernorm_fn", x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)


def rmsnorm_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    z: Optional[torch.Tensor] = None,
    eps: float = 1e-6,
    group_size: Optional[int] = None,
    norm_before_gate: bool = True,
) -> torch.Tensor:
    """`layernorm_fn` without the mean."""
    return _run("rmsnorm_fn", x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    z: Optional[torch.Tensor] = None,
    eps: float = 1e-6,
    group_size: Optional[int] = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> torch.Tensor:
    """The reference of `rmsnorm_fn` in plain operations. ``upcast``: compute in float32 (float64 stays)."""
    wide = x.float() if upcast and x.dtype != torch.float64 else x
    gate = 1 if z is None else F.silu(z.to(wide.dtype))
    rows = wide if norm_before_gate else wide * gate
    size = group_size or rows.shape[-1]
    rows = rows.reshape((*rows.shape[:-1], rows.shape[-1] // size, size))
    out = (rows / torch.sqrt(rows.square().mean(-1, keepdim=True) + eps)).reshape(x.shape) * weight.to(wide.dtype)
    out = out if bias is None else out + bias.to(wide.dtype)
    return (out * gate if norm_before_gate else out).to(x.dtype)


class LayerNormGated(NormBase):
    """`layernorm_fn` with weight and bias.

    Args:
        hidden_size: D.
        eps: added to the variance.
        group_size: channels of a group; all D if not given.
        norm_before_gate: apply the norm first. device, dtype: of the parameters.

    Example:
        >>> y = LayerNormGated(8)(torch.randn(2, 8), torch.randn(2, 8))
    """

    rms = False

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: Optional[int] = None,
        norm_before_gate: bool = True,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        _groups(type(self).__name__, hidden_size, group_size)
        super().__init__(hidden_size, True, not self.rms, eps, device, dtype)
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate

    def forward(self, x: torch.Tensor, z: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Normalise ``x [..., D]`` with the gate ``z``, shaped as x."""
        who = type(self).__name__
        return _run(who, x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate, self.rms)

    def extra_repr(self) -> str:
        """Size and settings, for ``repr``."""
        return f"{super().extra_repr()}, group_size={self.group_size}, norm_before_gate={self.norm_before_gate}"


class RMSNormGated(LayerNormGated):
    """`rmsnorm_fn` with a weight; by default the gate is applied before the norm.

    Args:
        hidden_size: D.
        eps: added to the mean square.
        group_size: channels of a group; all D if not given.
        norm_before_gate: apply the norm first.
        device, dtype: of the weight.

    Example:
        >>> y = RMSNormGated(8)(torch.randn(2, 8), torch.randn(2, 8))
    """

    rms = True

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: Optional[int] = None,
        norm_before_gate: bool = False,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, eps, group_size, norm_before_gate, device, dtype)


def _groups(who: str, size: int, group_size: Optional[int]) -> int:
    if group_size is not None and (group_size < 1 or size % group_size):
        raise value_error(who, "group_size", f"must divide the number of channels, {size}", group_size)
    return 1 if group_size is None else size // group_size


def _run(
    who: str, x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor],
    z: Optional[torch.Tensor], eps: float, group_size: Optional[int], norm_before_gate: bool, rms: bool,
) -> torch.Tensor:  # fmt: skip
    check_tensor(who, "x", x)
    if x.dim() < 1 or not x.is_floating_point():
        raise value_error(who, "x", "must be a floating tensor [..., D]", f"{x.dtype} {tuple(x.shape)}")
    groups = _groups(who, x.shape[-1], group_size)
    if z is not None:
        check_tensor(who, "z", z, x)
    if z is not None and z.shape != x.shape:
        raise value_error(who, "z", f"must have the shape of x, {tuple(x.shape)}", tuple(z.shape))
    y: Any  # a tensor, as there is no residual
    if z is None or norm_before_gate:
        y = normalise(who, x, weight, bias, None, eps, False, False, not rms, groups, z, "silu")
        return y
    kind = accumulation_dtype(x, z)
    gated = x.to(kind) * F.silu(z.to(kind))
    y = normalise(who, gated, weight, bias, None, eps, False, False, not rms, groups)
    return y.to(x.dtype)

"""The norms in plain operations: the reference of `layernorm`."""

from typing import Optional

import torch

from myfla.modules.norm_base import NormBase
from myfla.modules.norm_core import Result, check_groups


def group_norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    num_groups: int,
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    is_rms_norm: bool = False,
    prenorm: bool = False,
    upcast: bool = False,
) -> Result:
    """Norm over groups of the last axis. ``upcast``: compute in float32 (float64 stays), else in the dtype of x."""
    kind = x.dtype
    wide = x.float() if upcast and kind != torch.float64 else x
    if residual is not None:
        wide = wide + residual.to(wide.dtype)
    rows = wide.reshape((*wide.shape[:-1], num_groups, wide.shape[-1] // num_groups))
    if not is_rms_norm:
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows / torch.sqrt(rows.square().mean(-1, keepdim=True) + eps)
    out = rows.reshape(wide.shape) * weight.to(wide.dtype)
    out = (out if bias is None else out + bias.to(wide.dtype)).to(kind)
    return (out, wide) if prenorm else out


def layer_norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    upcast: bool = False,
) -> Result:
    """`group_norm_ref` with one group."""
    return group_norm_ref(x, weight, bias, 1, residual, eps, False, prenorm, upcast)


def rms_norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    upcast: bool = False,
) -> Result:
    """`group_norm_ref` with one group and no mean."""
    return group_norm_ref(x, weight, bias, 1, residual, eps, True, prenorm, upcast)


class GroupNormRef(NormBase):
    """`group_norm_ref` as a module, in float32; arguments as `myfla.modules.layernorm.GroupNorm`."""

    def __init__(
        self,
        num_groups: int,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        is_rms_norm: bool = False,
    ) -> None:
        check_groups("GroupNormRef", num_groups, hidden_size)
        super().__init__(hidden_size, elementwise_affine, bias, eps, None, None)
        self.num_groups, self.is_rms_norm = num_groups, is_rms_norm

    def forward(self, x: torch.Tensor, residual: Optional[torch.Tensor] = None, prenorm: bool = False) -> Result:
        """Normalise ``x [..., D]``."""
        weight = x.new_ones(self.hidden_size) if self.weight is None else self.weight
        return group_norm_ref(
            x, weight, self.bias, self.num_groups, residual, self.eps, self.is_rms_norm, prenorm, upcast=True)

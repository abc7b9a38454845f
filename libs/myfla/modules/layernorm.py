"""LayerNorm, RMSNorm and GroupNorm over the last axis, with an optional residual.

All take `(x, residual=None, prenorm=False, residual_in_fp32=False)`: the residual is added first, the sum is
normalised, and with `prenorm` the sum is returned too, for use as the next residual. Sums are float32 (float64 where an
argument is float64) and rounded once, to the dtype of x.
Root-mean-square norm: Zhang and Sennrich, 2019, arXiv 1910.07467.
"""

from typing import Optional

import torch

from myfla.modules.norm_base import NormBase
from myfla.modules.norm_core import Result, check_groups, normalise
from myfla.modules.norm_linear import (
    GroupNormLinear,
    LayerNormLinear,
    RMSNormLinear,
    group_norm_linear,
    layer_norm_linear,
    rms_norm_linear,
)
from myfla.modules.norm_refs import GroupNormRef, group_norm_ref, layer_norm_ref, rms_norm_ref

__all__ = [
    "GroupNorm",
    "GroupNormLinear",
    "GroupNormRef",
    "LayerNorm",
    "LayerNormLinear",
    "RMSNorm",
    "RMSNormLinear",
    "group_norm",
    "group_norm_linear",
    "group_norm_ref",
    "layer_norm",
    "layer_norm_linear",
    "layer_norm_ref",
    "rms_norm",
    "rms_norm_linear",
    "rms_norm_ref",
]


def layer_norm(
    x: torch.Tensor,
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Result:
    """``(h - mean(h)) / sqrt(var(h) + eps) * weight + bias`` of ``h = x + residual``.

    Args:
        x: ``[..., D]``, any floating type.
        weight, bias: ``[D]`` or None.
        residual: added to x first; it has the shape of x.
        eps: added to the variance.
        prenorm: also return h, in the dtype of the residual.
        residual_in_fp32: without a residual, return h in float32 if x has half precision.
        is_rms_norm: do not subtract the mean.

    Returns:
        ``[..., D]`` in the dtype of x; with ``prenorm`` also h.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), None, None).round().tolist()
        [[-1.0, 1.0]]
    """
    return normalise(
        "layer_norm", x, weight, bias, residual, eps, prenorm, residual_in_fp32, centred=not is_rms_norm)


def rms_norm(
    x: torch.Tensor,
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Result:
    """``h / sqrt(mean(h^2) + eps) * weight + bias`` of ``h = x + residual``; arguments as `layer_norm`.

    Example:
        >>> rms_norm(torch.tensor([[2.0, 2.0]]), torch.tensor([1.0, 3.0]), None).round().tolist()
        [[1.0, 3.0]]
    """
    return normalise("rms_norm", x, weight, bias, residual, eps, prenorm, residual_in_fp32, centred=False)


def group_norm(
    x: torch.Tensor,
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Result:
    """`layer_norm` of each of ``num_groups`` equal parts of the last axis; weight and bias are ``[D]``.

    Example:
        >>> group_norm(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), None, None, num_groups=2).round().tolist()
        [[-1.0, 1.0, 0.0, 0.0]]
    """
    return normalise(
        "group_norm", x, weight, bias, residual, eps, prenorm, residual_in_fp32, not is_rms_norm, num_groups)


class LayerNorm(NormBase):
    """`layer_norm` with parameters. Unlike ``nn.LayerNorm`` it has a bias only if requested.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        bias: have a bias too.
        eps: added to the variance.
        device, dtype: of the parameters.

    Example:
        >>> norm = LayerNorm(8)
        >>> y, h = norm(torch.zeros(2, 8), torch.ones(2, 8), prenorm=True)
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)

    def forward(
        self,
        x: torch.Tensor,
        residual: Optional[torch.Tensor] = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Result:
        """Normalise ``x [..., D]``; ``residual``, ``prenorm``, ``residual_in_fp32`` and the result as in
        `layer_norm`."""
        return normalise(
            type(self).__name__, x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32, True)


class RMSNorm(NormBase):
    """`rms_norm` with parameters.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        bias: have a bias too.
        eps: added to the mean square.
        device, dtype: of the parameters.

    Example:
        >>> y = RMSNorm(8)(torch.zeros(2, 8))
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)

    def forward(
        self,
        x: torch.Tensor,
        residual: Optional[torch.Tensor] = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Result:
        """Normalise ``x [..., D]``; ``residual``, ``prenorm``, ``residual_in_fp32`` and the result as in `rms_norm`."""
        return normalise(
            type(self).__name__, x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32, False)


class GroupNorm(NormBase):
    """`group_norm` with parameters: groups over the last axis, not the second as in ``nn.GroupNorm``.

    Args:
        num_groups: number of equal parts of the last axis.
        hidden_size, elementwise_affine, bias, eps: as for `LayerNorm`.
        is_rms_norm: do not subtract the mean.
        device, dtype: of the parameters.

    Raises:
        ValueError: ``num_groups`` does not divide ``hidden_size``.

    Example:
        >>> y = GroupNorm(2, 8)(torch.zeros(2, 8))
    """

    def __init__(
        self,
        num_groups: int,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        is_rms_norm: bool = False,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        check_groups(type(self).__name__, num_groups, hidden_size)
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)
        self.num_groups = num_groups
        self.is_rms_norm = is_rms_norm

    def forward(
        self,
        x: torch.Tensor,
        residual: Optional[torch.Tensor] = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Result:
        """Normalise ``x [..., D]``; ``residual``, ``prenorm``, ``residual_in_fp32`` and the result as in
        `group_norm`."""
        return normalise(
            type(self).__name__, x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32,
            not self.is_rms_norm, self.num_groups)

    def extra_repr(self) -> str:
        """Groups, size and settings, for ``repr``."""
        kind = ", is_rms_norm=True" if self.is_rms_norm else ""
        return f"{self.num_groups}, {super().extra_repr()}{kind}"

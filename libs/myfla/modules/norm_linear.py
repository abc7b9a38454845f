"""A norm followed by a projection whose weight is an argument of the call: ``linear(norm(x), weight, bias)``."""

from typing import Optional

import torch
import torch.nn.functional as F

from myfla.modules.norm_base import NormBase
from myfla.modules.norm_core import Result, check_groups, normalise
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor


def project(who: str, result: Result, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor]) -> Result:
    """The projection of a norm's result, which is a pair with ``prenorm``; weights are converted to its dtype."""
    y, carried = result if isinstance(result, tuple) else (result, None)
    if weight is None:
        raise value_error(who, "linear weight", "must be a tensor", "NoneType")
    check_tensor(who, "linear weight", weight, y)
    if weight.dim() != 2 or weight.shape[1] != y.shape[-1] or not weight.is_floating_point():
        got = f"{weight.dtype} {tuple(weight.shape)}"
        raise value_error(who, "linear weight", f"must have shape [out, {y.shape[-1]}] and be floating point", got)
    if bias is not None:
        check_tensor(who, "linear bias", bias, y)
        if tuple(bias.shape) != tuple(weight.shape[:1]) or not bias.is_floating_point():
            got = f"{bias.dtype} {tuple(bias.shape)}"
            raise value_error(who, "linear bias", f"must be a floating tensor [{weight.shape[0]}]", got)
    out = F.linear(y, weight.to(y.dtype), None if bias is None else bias.to(y.dtype))
    return out if carried is None else (out, carried)


def layer_norm_linear(
    x: torch.Tensor,
    norm_weight: Optional[torch.Tensor],
    norm_bias: Optional[torch.Tensor],
    linear_weight: torch.Tensor,
    linear_bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Result:
    """``linear(group_norm(x))``.

    Args:
        x: ``[..., D]``.
        norm_weight, norm_bias: ``[D]`` or None.
        linear_weight: ``[out, D]``.
        linear_bias: ``[out]`` or None.
        residual, eps, prenorm, residual_in_fp32, is_rms_norm, num_groups: as `myfla.modules.layernorm.group_norm`.

    Returns:
        ``[..., out]``; with ``prenorm`` also ``x + residual``.
    """
    who, centred = "layer_norm_linear", not is_rms_norm
    result = normalise(
        who, x, norm_weight, norm_bias, residual, eps, prenorm, residual_in_fp32, centred, num_groups)
    return project(who, result, linear_weight, linear_bias)


def rms_norm_linear(
    x: torch.Tensor,
    norm_weight: Optional[torch.Tensor],
    norm_bias: Optional[torch.Tensor],
    linear_weight: torch.Tensor,
    linear_bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Result:
    """`layer_norm_linear` with an RMS norm; other arguments and the result as there."""
    result = normalise("rms_norm_linear", x, norm_weight, norm_bias, residual, eps, prenorm, residual_in_fp32, False)
    return project("rms_norm_linear", result, linear_weight, linear_bias)


def group_norm_linear(
    x: torch.Tensor,
    norm_weight: Optional[torch.Tensor],
    norm_bias: Optional[torch.Tensor],
    linear_weight: torch.Tensor,
    linear_bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    num_groups: int = 1,
) -> Result:
    """`layer_norm_linear` under its other official name."""
    return layer_norm_linear(
        x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, residual_in_fp32, is_rms_norm,
        num_groups)


class LayerNormLinear(NormBase):
    """`layer_norm_linear` with the norm's parameters; arguments as `myfla.modules.layernorm.LayerNorm`.

    Example:
        >>> LayerNormLinear(8)(torch.randn(2, 8), torch.randn(3, 8), None).shape
        torch.Size([2, 3])
    """

    centred = True
    groups = 1

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
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        residual: Optional[torch.Tensor] = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Result:
        """``linear(norm(x), weight, bias)`` with ``weight [out, D]`` and ``bias [out]`` or None.

        ``residual``, ``prenorm`` and ``residual_in_fp32`` are those of `layer_norm_linear`.
        """
        who = type(self).__name__
        result = normalise(
            who, x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32, self.centred, self.groups)
        return project(who, result, weight, bias)


class RMSNormLinear(LayerNormLinear):
    """`rms_norm_linear` with the norm's parameters; arguments as `myfla.modules.layernorm.RMSNorm`.

    Example:
        >>> RMSNormLinear(8)(torch.randn(2, 8), torch.randn(3, 8), None).shape
        torch.Size([2, 3])
    """

    centred = False


class GroupNormLinear(LayerNormLinear):
    """`group_norm_linear` with the norm's parameters; arguments as `myfla.modules.layernorm.GroupNorm`.

    Example:
        >>> GroupNormLinear(2, 8)(torch.randn(2, 8), torch.randn(3, 8), None).shape
        torch.Size([2, 3])
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
        self.num_groups = self.groups = num_groups
        self.is_rms_norm = is_rms_norm
        self.centred = not is_rms_norm

    def extra_repr(self) -> str:
        """Groups, size and settings, for ``repr``."""
        return f"{self.num_groups}, {super().extra_repr()}"

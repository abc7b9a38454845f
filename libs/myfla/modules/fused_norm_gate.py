"""Norms with an output gate: ``y = (norm(x + residual) * weight + bias) * act(g)``.

The norm comes before the gate. `act` is swish, ``g * sigmoid(g)`` ("silu" is the same), or sigmoid. Sums are float32
(float64 where an argument is float64) and rounded once, to the dtype of x.
"""

from typing import Optional

import torch

from myfla.modules.norm_base import NormBase
from myfla.modules.norm_core import Result, check_activation, normalise
from myfla.modules.norm_linear import project

__all__ = [
    "FusedLayerNormGated",
    "FusedLayerNormGatedLinear",
    "FusedLayerNormSwishGate",
    "FusedLayerNormSwishGateLinear",
    "FusedRMSNormGated",
    "FusedRMSNormGatedLinear",
    "FusedRMSNormSwishGate",
    "FusedRMSNormSwishGateLinear",
    "layer_norm_gated",
    "layer_norm_swish_gate_linear",
    "rms_norm_gated",
    "rms_norm_swish_gate_linear",
]


def layer_norm_gated(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    activation: str = "swish",
    residual: Optional[torch.Tensor] = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Result:
    """Layer norm with an output gate.

    Args:
        x: ``[..., D]``, any floating type.
        g: the gate, with as many rows of D as x.
        weight, bias: ``[D]`` or None.
        activation: ``"swish"``, ``"silu"`` or ``"sigmoid"``.
        residual: shaped as x; added first.
        prenorm: also return ``x + residual``, in the dtype of the residual.
        residual_in_fp32: without a residual, return it in float32 when x is of half precision.
        eps: added to the variance. The modules below have 1e-5.

    Returns:
        ``[..., D]`` in the dtype of x; with ``prenorm`` a pair.

    Raises:
        ValueError: shapes that do not fit, or an unknown activation.

    Example:
        >>> y = layer_norm_gated(torch.randn(2, 8), torch.randn(2, 8), None, None)
    """
    return normalise(
        "layer_norm_gated", x, weight, bias, residual, eps, prenorm, residual_in_fp32, True, 1, g, activation)


def rms_norm_gated(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: Optional[torch.Tensor],
    bias: Optional[torch.Tensor],
    activation: str = "swish",
    residual: Optional[torch.Tensor] = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Result:
    """Root-mean-square norm with an output gate; arguments as `layer_norm_gated`.

    Example:
        >>> y = rms_norm_gated(torch.randn(2, 8), torch.randn(2, 8), torch.ones(8), None, "sigmoid")
    """
    return normalise(
        "rms_norm_gated", x, weight, bias, residual, eps, prenorm, residual_in_fp32, False, 1, g, activation)


def layer_norm_swish_gate_linear(
    x: torch.Tensor,
    g: torch.Tensor,
    norm_weight: Optional[torch.Tensor],
    norm_bias: Optional[torch.Tensor],
    linear_weight: torch.Tensor,
    linear_bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Result:
    """``linear(layer_norm_gated(x, g))`` with ``linear_weight [out, D]`` and ``linear_bias [out]`` or None."""
    result = layer_norm_gated(x, g, norm_weight, norm_bias, "swish", residual, prenorm, residual_in_fp32, eps)
    return project("layer_norm_swish_gate_linear", result, linear_weight, linear_bias)


def rms_norm_swish_gate_linear(
    x: torch.Tensor,
    g: torch.Tensor,
    norm_weight: Optional[torch.Tensor],
    norm_bias: Optional[torch.Tensor],
    linear_weight: torch.Tensor,
    linear_bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor] = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Result:
    """``linear(rms_norm_gated(x, g))`` with ``linear_weight [out, D]`` and ``linear_bias [out]`` or None."""
    result = rms_norm_gated(x, g, norm_weight, norm_bias, "swish", residual, prenorm, residual_in_fp32, eps)
    return project("rms_norm_swish_gate_linear", result, linear_weight, linear_bias)


class _Gated(NormBase):
    """A gated norm with parameters."""

    centred: bool

    def _set_gate(self, activation: str) -> None:
        check_activation(type(self).__name__, activation)
        self.activation = activation

    def forward(
        self,
        x: torch.Tensor,
        g: torch.Tensor,
        residual: Optional[torch.Tensor] = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Result:
        """Normalise ``x [..., D]`` and gate it with ``g``; see `layer_norm_gated`."""
        return normalise(
            type(self).__name__, x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32, self.centred,
            1, g, self.activation)

    def extra_repr(self) -> str:
        """Size and settings, for ``repr``."""
        return f"{super().extra_repr()}, activation={self.activation}"


class FusedLayerNormGated(_Gated):
    """`layer_norm_gated` with parameters.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        bias: have a bias too.
        activation: ``"swish"``, ``"silu"`` or ``"sigmoid"``.
        eps: added to the variance.
        device, dtype: of the parameters.

    Example:
        >>> y = FusedLayerNormGated(8)(torch.randn(2, 8), torch.randn(2, 8))
    """

    centred = True

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        bias: bool = False,
        activation: str = "swish",
        eps: float = 1e-5,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, bias, eps, device, dtype)
        self._set_gate(activation)


class FusedRMSNormGated(_Gated):
    """`rms_norm_gated` with a weight, the norm of each head's output in GatedDeltaNet.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        eps: added to the mean square.
        activation: ``"swish"``, ``"silu"`` or ``"sigmoid"``.
        device, dtype: of the weight.

    Example:
        >>> y = FusedRMSNormGated(8)(torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8))
    """

    centred = False

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        activation: str = "swish",
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, False, eps, device, dtype)
        self._set_gate(activation)


class FusedLayerNormSwishGate(FusedLayerNormGated):
    """`FusedLayerNormGated` with swish.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        bias: have a bias too.
        eps: added to the variance.
        device, dtype: of the parameters.

    Example:
        >>> FusedLayerNormSwishGate(8)(torch.randn(2, 8), torch.randn(2, 8)).shape
        torch.Size([2, 8])
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
        super().__init__(hidden_size, elementwise_affine, bias, "swish", eps, device, dtype)


class FusedRMSNormSwishGate(FusedRMSNormGated):
    """`FusedRMSNormGated` with swish.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        eps: added to the mean square.
        device, dtype: of the weight.

    Example:
        >>> FusedRMSNormSwishGate(8)(torch.randn(2, 8), torch.zeros(2, 8)).abs().sum().item()
        0.0
    """

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, eps, "swish", device, dtype)


class FusedLayerNormGatedLinear(NormBase):
    """`layer_norm_swish_gate_linear` with the norm's weight; the projection's weight is an argument of the call.

    Args:
        hidden_size: D.
        elementwise_affine: have a weight.
        eps: added to the variance.
        device, dtype: of the weight.

    Example:
        >>> norm = FusedLayerNormGatedLinear(8)
        >>> norm(torch.randn(2, 8), torch.randn(2, 8), weight=torch.randn(3, 8)).shape
        torch.Size([2, 3])
    """

    centred = True

    def __init__(
        self,
        hidden_size: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(hidden_size, elementwise_affine, False, eps, device, dtype)

    def forward(
        self,
        x: torch.Tensor,
        g: torch.Tensor,
        weight: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        residual: Optional[torch.Tensor] = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Result:
        """``linear(norm(x) * swish(g), weight, bias)`` with ``weight [out, D]`` and ``bias [out]`` or None.

        ``residual``, ``prenorm`` and ``residual_in_fp32`` are those of `layer_norm`.
        """
        who = type(self).__name__
        result = normalise(
            who, x, self.weight, self.bias, residual, self.eps, prenorm, residual_in_fp32, self.centred, 1, g, "swish")
        return project(who, result, weight, bias)


class FusedLayerNormSwishGateLinear(FusedLayerNormGatedLinear):
    """`FusedLayerNormGatedLinear` under its other official name; arguments as `FusedLayerNormGatedLinear`.

    Example:
        >>> FusedLayerNormSwishGateLinear(8)(torch.randn(2, 8), torch.randn(2, 8), weight=torch.randn(3, 8)).shape
        torch.Size([2, 3])
    """


class FusedRMSNormGatedLinear(FusedLayerNormGatedLinear):
    """`rms_norm_swish_gate_linear` with the norm's weight; arguments as `FusedLayerNormGatedLinear`.

    Example:
        >>> FusedRMSNormGatedLinear(8)(torch.randn(2, 8), torch.randn(2, 8), weight=torch.randn(3, 8)).shape
        torch.Size([2, 3])
    """

    centred = False


class FusedRMSNormSwishGateLinear(FusedRMSNormGatedLinear):
    """`FusedRMSNormGatedLinear` under its other official name; arguments as `FusedLayerNormGatedLinear`.

    Example:
        >>> FusedRMSNormSwishGateLinear(8)(torch.randn(2, 8), torch.randn(2, 8), weight=torch.randn(3, 8)).shape
        torch.Size([2, 3])
    """

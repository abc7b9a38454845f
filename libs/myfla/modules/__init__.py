"""Layers with parameters and without states: convolution, norms, token shift, feed-forward."""

from myfla.modules.convolution import ShortConvolution
from myfla.modules.fused_norm_gate import (
    FusedLayerNormGated,
    FusedLayerNormSwishGate,
    FusedLayerNormSwishGateLinear,
    FusedRMSNormGated,
    FusedRMSNormSwishGate,
    FusedRMSNormSwishGateLinear,
)
from myfla.modules.l2norm import L2Norm
from myfla.modules.layernorm import GroupNorm, GroupNormLinear, LayerNorm, LayerNormLinear, RMSNorm, RMSNormLinear
from myfla.modules.mlp import GatedMLP
from myfla.modules.rotary import RotaryEmbedding
from myfla.modules.token_shift import TokenShift

__all__ = [
    "FusedLayerNormGated",
    "FusedLayerNormSwishGate",
    "FusedLayerNormSwishGateLinear",
    "FusedRMSNormGated",
    "FusedRMSNormSwishGate",
    "FusedRMSNormSwishGateLinear",
    "GatedMLP",
    "GroupNorm",
    "GroupNormLinear",
    "L2Norm",
    "LayerNorm",
    "LayerNormLinear",
    "RMSNorm",
    "RMSNormLinear",
    "RotaryEmbedding",
    "ShortConvolution",
    "TokenShift",
]

"""The layers, under the names flash-linear-attention gives them."""

from myfla.layers.attn import Attention
from myfla.layers.gated_deltanet import GatedDeltaNet
from myfla.layers.rwkv7 import RWKV7Attention

__all__ = ["Attention", "GatedDeltaNet", "RWKV7Attention"]

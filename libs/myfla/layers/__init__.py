"""The layers, under the names flash-linear-attention gives them."""

from myfla.layers.attn import Attention
from myfla.layers.comba import Comba
from myfla.layers.delta_net import DeltaNet
from myfla.layers.gated_deltanet import GatedDeltaNet
from myfla.layers.gated_deltaproduct import GatedDeltaProduct
from myfla.layers.gdn2 import GatedDeltaNet2
from myfla.layers.gla import GatedLinearAttention
from myfla.layers.kda import KimiDeltaAttention
from myfla.layers.mamba2 import Mamba2
from myfla.layers.rwkv7 import RWKV7Attention

__all__ = [
    "Attention",
    "Comba",
    "DeltaNet",
    "GatedDeltaNet",
    "GatedDeltaNet2",
    "GatedDeltaProduct",
    "GatedLinearAttention",
    "KimiDeltaAttention",
    "Mamba2",
    "RWKV7Attention",
]

"""Encoders of GatedDeltaNet layers, some of which may be softmax attention."""

from typing import Any, Dict, Optional, Tuple

import torch.nn as nn

from cfg.attention import KNOWN
from cfg.encoder import GatedDeltaNetEncoderConfig
from encoders.pretrained import refuse_checkpoint
from encoders.strategies.layers import PARTS, LayerEncoderStrategy, checkpoint_fields
from myfla.layers import Attention, GatedDeltaNet
from myfla.models import GatedDeltaNetConfig

__all__ = ["GatedDeltaNetEncoderStrategy"]


class GatedDeltaNetEncoderStrategy(LayerEncoderStrategy[GatedDeltaNetEncoderConfig]):
    """Gated DeltaNet (arXiv 2412.06464).

    Example:
        >>> strategy = GatedDeltaNetEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "gated_deltanet", GatedDeltaNetEncoderConfig, GatedDeltaNet
    model_type, checkpoint_parts = "gated_deltanet", PARTS
    other_fields = ("attn",)

    def state_shape(self, config: GatedDeltaNetEncoderConfig, layer_idx: int) -> Optional[Tuple[int, ...]]:
        return None if self._is_attention(config, layer_idx) else super().state_shape(config, layer_idx)

    def build_mixer(self, config: GatedDeltaNetEncoderConfig, layer_idx: int, device: Any = None,
                    dtype: Any = None) -> nn.Module:
        if not self._is_attention(config, layer_idx):
            return super().build_mixer(config, layer_idx, device=device, dtype=dtype)
        settings = {name: value for name, value in config.attn.items() if name != "layers"}
        return Attention(config.hidden_size, layer_idx=layer_idx, device=device, dtype=dtype, **settings)

    def fields_of_checkpoint(self, found: GatedDeltaNetConfig, file: str) -> Dict[str, Any]:
        same = ("num_heads", "head_dim", "expand_v", "num_v_heads", "use_gate", "use_short_conv", "allow_neg_eigval",
                "conv_size", "output_gate_activation")
        fields = checkpoint_fields(found, file, same, attn=True)
        if isinstance(found.attn, list):
            raise refuse_checkpoint(file, "attn", "must be null or one group of layers", found.attn)
        attn = found.attn and {name: found.attn[name] for name in KNOWN}
        return {**fields, "conv_bias": False, "attn": attn}

    @staticmethod
    def _is_attention(config: GatedDeltaNetEncoderConfig, layer_idx: int) -> bool:
        return config.attn is not None and layer_idx in config.attn["layers"]

"""Encoders of GatedDeltaNet layers."""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn

from cfg.attention import KNOWN
from cfg.encoder import GatedDeltaNetEncoderConfig
from encoders.blocks import PreNormBlock, StackCall
from encoders.gates import Gates
from encoders.pretrained import refuse_checkpoint
from encoders.strategy import EncoderStrategy
from myfla.layers import Attention, GatedDeltaNet
from myfla.models import GatedDeltaNetConfig
from myfla.modules.mlp import inner_size

__all__ = ["GatedDeltaNetBlock", "GatedDeltaNetEncoderStrategy"]


class GatedDeltaNetBlock(PreNormBlock):
    """A residual block around `myfla.layers.GatedDeltaNet`, which keeps its states in the cache itself."""

    def mix(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        y, _, _ = self.mixer(x, past_key_values=call.cache, use_cache=call.use_cache, cu_seqlens=call.cu_seqlens)
        return y, carry


class GatedDeltaNetEncoderStrategy(EncoderStrategy[GatedDeltaNetEncoderConfig]):
    """Gated DeltaNet (arXiv 2412.06464) with a gated MLP and RMSNorm, as in the official model.

    Example:
        >>> strategy = GatedDeltaNetEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name = "gated_deltanet"
    config_class = GatedDeltaNetEncoderConfig
    block_class = GatedDeltaNetBlock
    model_type = "gated_deltanet"
    checkpoint_parts = {"attn_norm": "mixer_norm", "attn": "mixer", "mlp_norm": "mlp_norm", "mlp": "mlp"}

    def state_shape(self, config: GatedDeltaNetEncoderConfig, layer_idx: int) -> Optional[Tuple[int, ...]]:
        if config.attn is not None and layer_idx in config.attn["layers"]:
            return None
        return (config.num_v_heads or config.num_heads, config.head_dim, round(config.head_dim * config.expand_v))

    def gates(self, mixer: nn.Module, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> Optional[Gates]:
        if not isinstance(mixer, GatedDeltaNet):
            return None
        log_decay, beta = mixer.gates(x)
        strongest = 2.0 if mixer.allow_neg_eigval else 1.0
        return Gates(log_decay.unsqueeze(-1), beta.unsqueeze(-1), "beta", strongest)

    def build_mixer(self, config: GatedDeltaNetEncoderConfig, layer_idx: int, device: Any = None,
                    dtype: Any = None) -> nn.Module:
        if config.attn is not None and layer_idx in config.attn["layers"]:
            settings = {name: value for name, value in config.attn.items() if name != "layers"}
            return Attention(config.hidden_size, layer_idx=layer_idx, device=device, dtype=dtype, **settings)
        return GatedDeltaNet(
            hidden_size=config.hidden_size,
            expand_v=config.expand_v,
            head_dim=config.head_dim,
            num_heads=config.num_heads,
            num_v_heads=config.num_v_heads,
            mode=config.mode,
            use_gate=config.use_gate,
            use_short_conv=config.use_short_conv,
            allow_neg_eigval=config.allow_neg_eigval,
            conv_size=config.conv_size,
            conv_bias=config.conv_bias,
            layer_idx=layer_idx,
            norm_eps=config.norm_eps,
            output_gate_activation=config.output_gate_activation,
            backend=config.backend,
            device=device,
            dtype=dtype,
        )

    def fields_of_checkpoint(self, found: GatedDeltaNetConfig, file: str) -> Dict[str, Any]:
        if found.attnres_block_size is not None:
            raise refuse_checkpoint(file, "attnres_block_size", "must be null", found.attnres_block_size)
        if found.hidden_act != "swish":
            raise refuse_checkpoint(file, "hidden_act", "must be 'swish'", found.hidden_act)
        if isinstance(found.attn, list):
            raise refuse_checkpoint(file, "attn", "must be null or one group of layers", found.attn)
        attn = found.attn and {name: found.attn[name] for name in KNOWN}
        inner = inner_size(found.hidden_size, found.hidden_ratio, found.intermediate_size)
        same = ("num_heads", "head_dim", "expand_v", "num_v_heads", "use_gate", "use_short_conv", "allow_neg_eigval",
                "conv_size", "output_gate_activation")
        more = dict(conv_bias=False, mlp_ratio=inner / found.hidden_size, attn=attn)
        return {**{name: getattr(found, name) for name in same}, **more}

"""Encoders of RWKV-7 layers."""

import json
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn

from cfg.encoder import RWKV7EncoderConfig
from encoders.blocks import PreNormBlock, StackCall
from encoders.gates import Gates
from encoders.pretrained import refuse_checkpoint
from encoders.strategy import EncoderStrategy
from myfla.layers.rwkv7 import RWKV7Attention
from myfla.models import RWKV7Config
from myfla.models.rwkv7.feed_forward import RWKV7FeedForward, inner_size
from myfla.modules.layernorm import LayerNorm

__all__ = ["RWKV7Block", "RWKV7EncoderStrategy"]


class RWKV7Block(PreNormBlock):
    """A residual block of `myfla.layers.RWKV7Attention` and its feed-forward, which looks one token back as well.

    The carry is ``v_first``, the values of the first layer, which every later layer mixes with its own.

    Args:
        entry_norm: in front of the whole block; the official model has one in the first block only.
    """

    def __init__(self, *parts: Any, entry_norm: nn.Module) -> None:
        super().__init__(*parts)
        self.entry_norm = entry_norm

    def forward(self, hidden: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        return super().forward(self.entry_norm(hidden), call, carry)

    def mix(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        y, _, _, v_first = self.mixer(
            x, past_key_values=call.cache, use_cache=call.use_cache, v_first=carry, cu_seqlens=call.cu_seqlens
        )
        return y, v_first

    def feed(self, x: torch.Tensor, call: StackCall) -> torch.Tensor:
        y, _ = self.mlp(x, state=call.cache, use_cache=call.use_cache, cu_seqlens=call.cu_seqlens)
        return y


class RWKV7EncoderStrategy(EncoderStrategy[RWKV7EncoderConfig]):
    """RWKV-7 (arXiv 2503.14456) with its own feed-forward and LayerNorm, as in the official model.

    As there, a fresh encoder's layers add nothing (their output projections are zero); they begin to with the first
    training step.

    Example:
        >>> strategy = RWKV7EncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name = "rwkv7"
    config_class = RWKV7EncoderConfig
    model_type = "rwkv7"
    checkpoint_parts = {  # noqa: RUF012
        "pre_norm": "entry_norm", "attn_norm": "mixer_norm", "attn": "mixer", "ffn_norm": "mlp_norm", "ffn": "mlp",
    }

    def state_shape(self, config: RWKV7EncoderConfig, layer_idx: int) -> Tuple[int, ...]:
        heads = config.resolved_num_heads
        return heads, config.resolved_head_dim, (config.value_dim or config.hidden_size) // heads

    def gates(self, mixer: RWKV7Attention, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> Gates:
        log_decay, rate = mixer.gates(x, cu_seqlens)
        return Gates(log_decay, rate, "a")

    def build_mixer(self, config: RWKV7EncoderConfig, layer_idx: int, device: Any = None,
                    dtype: Any = None) -> nn.Module:
        return RWKV7Attention(
            mode=config.mode,
            hidden_size=config.hidden_size,
            head_dim=config.resolved_head_dim,
            decay_low_rank_dim=config.decay_low_rank_dim,
            gate_low_rank_dim=config.gate_low_rank_dim,
            a_low_rank_dim=config.a_low_rank_dim,
            v_low_rank_dim=config.v_low_rank_dim,
            norm_eps=config.norm_eps,
            layer_idx=layer_idx,
            fuse_norm=config.fuse_norm,
            value_dim=config.value_dim,
            num_hidden_layers=config.num_layers,
            backend=config.backend,
            device=device,
            dtype=dtype,
        )

    def build_mlp(self, config: RWKV7EncoderConfig, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        return RWKV7FeedForward(
            config.hidden_size,
            intermediate_size=config.intermediate_size,
            layer_idx=layer_idx,
            num_hidden_layers=config.num_layers,
            device=device,
            dtype=dtype,
        )

    def build_norm(self, config: RWKV7EncoderConfig, device: Any = None, dtype: Any = None) -> nn.Module:
        return LayerNorm(config.hidden_size, bias=True, eps=config.norm_eps, device=device, dtype=dtype)

    def build_block(self, config: RWKV7EncoderConfig, layer_idx: int, device: Any = None,
                    dtype: Any = None) -> nn.Module:
        made = dict(device=device, dtype=dtype)
        return RWKV7Block(
            self.build_mixer(config, layer_idx, **made),
            self.build_mlp(config, layer_idx, **made),
            self.build_norm(config, **made),
            self.build_norm(config, **made),
            config.dropout,
            config.drop_path or 0.0,
            entry_norm=self.build_norm(config, **made) if layer_idx == 0 else nn.Identity(),
        )

    def fields_of_checkpoint(self, found: RWKV7Config, file: str) -> Dict[str, Any]:
        for field, needed in (("norm_first", True), ("norm_bias", True), ("hidden_act", "sqrelu")):
            if getattr(found, field) != needed:
                raise refuse_checkpoint(file, field, f"must be {json.dumps(needed)}", getattr(found, field))
        if len(set(found.value_dim)) > 1:
            raise refuse_checkpoint(file, "value_dim", "must be the same for all layers", found.value_dim)
        inner = inner_size(found.hidden_size, found.hidden_ratio, found.intermediate_size)
        same = ("head_dim", "decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "fuse_norm")
        return dict({name: getattr(found, name) for name in same}, value_dim=found.value_dim[0],
                    mlp_ratio=inner / found.hidden_size)

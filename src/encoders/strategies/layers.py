"""What strategies around a layer of `myfla.layers` share."""

import dataclasses
from typing import Any, ClassVar, Dict, Optional, Sequence, Tuple, Type

import torch
import torch.nn as nn

from cfg.encoder import EncoderConfig
from encoders.blocks import PreNormBlock, StackCall
from encoders.gates import Gates
from encoders.pretrained import refuse_checkpoint
from encoders.strategy import ConfigT, EncoderStrategy
from myfla.layers.recurrent_layer import RecurrentLayer
from myfla.models.configuration import ModelConfig
from myfla.modules.mlp import inner_size

__all__ = ["LayerBlock", "LayerEncoderStrategy", "checkpoint_fields"]

PARTS = {"attn_norm": "mixer_norm", "attn": "mixer", "mlp_norm": "mlp_norm", "mlp": "mlp"}


class LayerBlock(PreNormBlock):
    """A residual block around a layer of `myfla.layers`, which keeps its states in the cache itself."""

    def mix(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        y, _, _ = self.mixer(x, past_key_values=call.cache, use_cache=call.use_cache, cu_seqlens=call.cu_seqlens)
        return y, carry


class LayerEncoderStrategy(EncoderStrategy[ConfigT]):
    """Encoders of one recurrent layer, with a gated MLP and RMSNorm, as in the official models.

    Attributes:
        layer_class: the layer; every field that its encoder's config adds to the shared ones is an argument of it.
        strength_name: what the field calls the layer's write strength.
        other_fields: those of the config that are no arguments of the layer.
    """

    layer_class: ClassVar[Type[RecurrentLayer]]
    strength_name: ClassVar[str] = "beta"
    other_fields: ClassVar[Tuple[str, ...]] = ()
    block_class = LayerBlock

    def build_mixer(self, config: ConfigT, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        shared = {field.name for field in dataclasses.fields(EncoderConfig)}
        own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
               if field.name not in shared and field.name not in self.other_fields}
        own = {name: getattr(config, f"resolved_{name}", None) if value is None else value
               for name, value in own.items()}
        made: Any = self.layer_class
        return made(hidden_size=config.hidden_size, layer_idx=layer_idx, norm_eps=config.norm_eps, device=device,
                    dtype=dtype, **own)

    def state_shape(self, config: ConfigT, layer_idx: int) -> Optional[Tuple[int, ...]]:
        layer: Any = self.build_mixer(config, layer_idx, device="meta")
        return (layer.num_v_heads, layer.head_k_dim, layer.head_v_dim)

    def gates(self, mixer: nn.Module, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> Optional[Gates]:
        if not isinstance(mixer, self.layer_class):
            return None
        log_decay, strength = self.gates_of(mixer, x)
        strongest = 2.0 if getattr(mixer, "allow_neg_eigval", False) else 1.0
        return Gates(log_decay, strength, self.strength_name, strongest)

    def gates_of(self, mixer: Any, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Log decay and write strength, ``[B, T, heads, channels]`` each."""
        log_decay, strength = mixer.gates(x)
        return _channels(log_decay), _channels(strength)


def _channels(x: torch.Tensor) -> torch.Tensor:
    """``[B, T, heads]`` as ``[B, T, heads, 1]``."""
    return x if x.dim() == 4 else x.unsqueeze(-1)


def checkpoint_fields(found: ModelConfig, file: str, same: Sequence[str], attn: bool = False) -> Dict[str, Any]:
    """The fields of an encoder's config that an official config decides.

    Args:
        found: the official config.
        file: where it was read, for messages.
        same: fields that have the same name and meaning in both.
        attn: whether layers of softmax attention are allowed.

    Raises:
        CheckpointError: a model that the encoder's blocks cannot hold.
    """
    refused: Dict[str, Any] = {"attnres_block_size": None, "hidden_act": "swish", **({} if attn else {"attn": None})}
    for field, want in refused.items():
        if getattr(found, field) != want:
            shown = "null" if want is None else repr(want)
            raise refuse_checkpoint(file, field, f"must be {shown}", getattr(found, field))
    inner = inner_size(found.hidden_size, found.hidden_ratio, found.intermediate_size)
    return {**{name: getattr(found, name) for name in same}, "mlp_ratio": inner / found.hidden_size}

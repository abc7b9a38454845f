"""The base class of strategies: a strategy builds the residual blocks of one kind of layer."""

import abc
from types import MappingProxyType
from typing import Any, Dict, Generic, Mapping, Optional, Tuple, Type, TypeVar

import torch
import torch.nn as nn

from cfg.encoder import EncoderConfig
from encoders.blocks import PreNormBlock
from encoders.gates import Gates
from encoders.pretrained import build_pretrained
from encoders.stack import Encoder
from myfla.models.configuration import ModelConfig
from myfla.modules.layernorm import RMSNorm
from myfla.modules.mlp import GatedMLP
from myfla.utils.errors import value_error

__all__ = ["EncoderStrategy"]

ConfigT = TypeVar("ConfigT", bound=EncoderConfig)


class EncoderStrategy(abc.ABC, Generic[ConfigT]):
    """Builds encoders of one kind of layer.

    A subclass sets its name and its config class and builds its mixer; everything around it (input, packing, residuals,
    directions, pooling, files) belongs to the stack. If the mixer is called in another way, ``block_class`` is a
    subclass of `PreNormBlock` that does so; if the block is another one, `build_block` returns any module that is
    called like `PreNormBlock`.

    Attributes:
        name: the name for users, e.g. ``gated_deltanet``.
        config_class: a dataclass that extends `cfg.encoder.EncoderConfig`; its ``name`` defaults to ``name``.
        origin: its package and version, which are written to saved files; set by the registry.
        block_class: the residual block.
        model_type: ``model_type`` of official checkpoints for ``encoder.pretrained``; None if there are none.
        checkpoint_parts: the names in ``block_class`` of the parts of the official block.

    Example:
        >>> from encoders import get_strategy
        >>> strategy = get_strategy("gated_deltanet")
        >>> encoder = strategy.build(strategy.config_class(input_size=12))
    """

    name: str
    config_class: Type[ConfigT]
    origin: str = "unknown"
    block_class: Type[PreNormBlock] = PreNormBlock
    model_type: Optional[str] = None
    checkpoint_parts: Mapping[str, str] = MappingProxyType({})

    @abc.abstractmethod
    def build_mixer(self, config: ConfigT, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        """The layer that mixes along time, ``mixer(x, call, carry) -> (y, carry)`` unless ``block_class`` adapts it.

        Args:
            config: of this strategy's class.
            layer_idx: number of the block, and of the mixer's slot in a cache.
            device, dtype: for every parameter.
        """

    def build_mlp(self, config: ConfigT, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        """The part of block ``layer_idx`` that works on each token: a gated MLP (SwiGLU) of
        ``config.intermediate_size``.

        ``device`` and ``dtype`` are those of its parameters.
        """
        return GatedMLP(config.hidden_size, intermediate_size=config.intermediate_size, device=device, dtype=dtype)

    def build_norm(self, config: ConfigT, device: Any = None, dtype: Any = None) -> nn.Module:
        """The normalisation before each branch and after the last block: RMSNorm of ``config.hidden_size`` channels.

        ``device`` and ``dtype`` are those of its parameters.
        """
        return RMSNorm(config.hidden_size, eps=config.norm_eps, device=device, dtype=dtype)

    def state_shape(self, config: ConfigT, layer_idx: int) -> Optional[Tuple[int, ...]]:
        """Shape ``(HV, K, V)`` of the ``recurrent_state`` of mixer ``layer_idx`` for one sequence, or None.

        Only needed for ``config.state_weaving``: the mixer then gets its first state in its slot of the cache.
        """
        return None

    def gates(self, mixer: Any, x: torch.Tensor, cu_seqlens: Optional[torch.Tensor] = None) -> Optional[Gates]:
        """Decay and write strength of a mixer, for `encoders.probing.probe`; None if they are not known.

        Args:
            mixer: a result of `build_mixer`.
            x: its input, ``[B, T, D]`` or packed ``[1, total, D]``.
            cu_seqlens: ``[N + 1]`` int32 if it is packed.

        Returns:
            tensors ``[B, T, heads, channels]``.
        """
        return None

    def fields_of_checkpoint(self, found: ModelConfig, file: str) -> Dict[str, Any]:
        """The fields of the encoder's config that an official config sets, besides those that all encoders have.

        Args:
            found: the official config, of ``model_type``.
            file: its file, for messages.

        Raises:
            CheckpointError: the encoder's blocks cannot represent the model.
        """
        return {}

    def build_block(self, config: ConfigT, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        """One residual block; see `PreNormBlock` for how it is called.

        Args:
            config: of this strategy's class.
            layer_idx: number of the block.
            device, dtype: of every parameter.

        Returns:
            The block.
        """
        return self.block_class(
            self.build_mixer(config, layer_idx, device=device, dtype=dtype),
            self.build_mlp(config, layer_idx, device=device, dtype=dtype),
            self.build_norm(config, device=device, dtype=dtype),
            self.build_norm(config, device=device, dtype=dtype),
            config.dropout,
            config.drop_path or 0.0,
        )

    def build(self, config: ConfigT, device: Any = None, dtype: Any = None) -> Encoder:
        """The whole encoder.

        Args:
            config: of this strategy's class, with ``input_size`` or ``vocab_size`` set.
            device, dtype: for every parameter.

        Raises:
            ValueError: a config of another class, or one that breaks a rule.
            ConfigError, CheckpointError: ``config.pretrained`` names a checkpoint that does not fit or is damaged.
        """
        if not isinstance(config, self.config_class):
            raise value_error(f"{type(self).__name__}.build", "config", f"must be a {self.config_class.__name__}",
                              type(config).__name__)
        if config.pretrained is not None:
            return build_pretrained(self, config, device=device, dtype=dtype)
        return Encoder(config, self, device=device, dtype=dtype)

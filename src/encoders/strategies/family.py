"""Encoders of the delta rule's wider family."""

from typing import Any, Dict, Tuple

import torch

from cfg.encoder import (
    CombaEncoderConfig,
    DeltaNetEncoderConfig,
    GatedDeltaProductEncoderConfig,
    GDN2EncoderConfig,
    GLAEncoderConfig,
    KDAEncoderConfig,
    Mamba2EncoderConfig,
)
from encoders.strategies.layers import PARTS, LayerEncoderStrategy, checkpoint_fields
from myfla.layers import (
    Comba,
    DeltaNet,
    GatedDeltaNet2,
    GatedDeltaProduct,
    GatedLinearAttention,
    KimiDeltaAttention,
    Mamba2,
)
from myfla.models.configuration import ModelConfig

__all__ = ["CombaEncoderStrategy", "DeltaNetEncoderStrategy", "GDN2EncoderStrategy", "GLAEncoderStrategy",
           "GatedDeltaProductEncoderStrategy", "KDAEncoderStrategy", "Mamba2EncoderStrategy"]


class DeltaNetEncoderStrategy(LayerEncoderStrategy[DeltaNetEncoderConfig]):
    """DeltaNet (arXiv 2406.06484).

    Example:
        >>> strategy = DeltaNetEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "delta_net", DeltaNetEncoderConfig, DeltaNet
    model_type, checkpoint_parts = "delta_net", PARTS

    def gates_of(self, mixer: Any, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        beta = mixer.gates(x).unsqueeze(-1)
        return torch.zeros_like(beta), beta

    def fields_of_checkpoint(self, found: ModelConfig, file: str) -> Dict[str, Any]:
        same = ("num_heads", "expand_k", "expand_v", "use_beta", "use_gate", "use_short_conv", "conv_size",
                "allow_neg_eigval", "qk_activation", "qk_norm")
        return {**checkpoint_fields(found, file, same), "conv_bias": False}


class GatedDeltaProductEncoderStrategy(LayerEncoderStrategy[GatedDeltaProductEncoderConfig]):
    """Gated DeltaProduct (arXiv 2502.10297).

    Example:
        >>> strategy = GatedDeltaProductEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "gated_deltaproduct", GatedDeltaProductEncoderConfig, GatedDeltaProduct
    model_type, checkpoint_parts = "gated_deltaproduct", PARTS

    def gates_of(self, mixer: Any, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        g, beta = mixer.gates(x)
        beta = beta.transpose(2, 3)  # steps are a head's channels
        return torch.zeros_like(beta[..., :1]) if g is None else g.unsqueeze(-1), beta

    def fields_of_checkpoint(self, found: ModelConfig, file: str) -> Dict[str, Any]:
        same = ("num_heads", "head_dim", "expand_v", "use_output_gate", "use_short_conv", "conv_size",
                "use_forget_gate", "allow_neg_eigval", "num_householder")
        return {**checkpoint_fields(found, file, same), "num_v_heads": None, "conv_bias": False}


class GDN2EncoderStrategy(LayerEncoderStrategy[GDN2EncoderConfig]):
    """Gated DeltaNet 2.

    Example:
        >>> strategy = GDN2EncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class, strength_name = "gdn2", GDN2EncoderConfig, GatedDeltaNet2, "b"

    def gates_of(self, mixer: Any, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        g, b, _ = mixer.gates(x)
        return g, b


class CombaEncoderStrategy(LayerEncoderStrategy[CombaEncoderConfig]):
    """Comba (arXiv 2506.02475).

    Example:
        >>> strategy = CombaEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "comba", CombaEncoderConfig, Comba


class KDAEncoderStrategy(LayerEncoderStrategy[KDAEncoderConfig]):
    """Kimi Delta Attention (arXiv 2510.26692).

    Example:
        >>> strategy = KDAEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "kda", KDAEncoderConfig, KimiDeltaAttention
    model_type, checkpoint_parts = "kda", PARTS

    def fields_of_checkpoint(self, found: ModelConfig, file: str) -> Dict[str, Any]:
        same = ("num_heads", "head_dim", "expand_v", "num_v_heads", "use_short_conv", "conv_size", "allow_neg_eigval",
                "safe_gate", "lower_bound")
        return {**checkpoint_fields(found, file, same), "conv_bias": False}


class GLAEncoderStrategy(LayerEncoderStrategy[GLAEncoderConfig]):
    """Gated linear attention (arXiv 2312.06635), which adds to the value of a key and never replaces it.

    Example:
        >>> strategy = GLAEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "gla", GLAEncoderConfig, GatedLinearAttention

    def gates_of(self, mixer: Any, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        log_decay = mixer.gates(x)
        return log_decay, torch.zeros_like(log_decay[..., :1])


class Mamba2EncoderStrategy(LayerEncoderStrategy[Mamba2EncoderConfig]):
    """Mamba-2 (arXiv 2405.21060), which also adds to the value of a key and never replaces it.

    Example:
        >>> strategy = Mamba2EncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name, config_class, layer_class = "mamba2", Mamba2EncoderConfig, Mamba2

    def gates_of(self, mixer: Any, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        log_decay = mixer.gates(x)[0].unsqueeze(-1)
        return log_decay, torch.zeros_like(log_decay)

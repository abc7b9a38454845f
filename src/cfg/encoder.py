"""The configs of all built-in encoders, by name."""

from typing import Dict, Type

from cfg.encoder_base import BACKENDS, DIRECTIONS, MODES, POOLINGS, STEMS, EncoderConfig
from cfg.encoder_delta import (
    CombaEncoderConfig,
    GatedDeltaNetEncoderConfig,
    GatedDeltaProductEncoderConfig,
    GDN2EncoderConfig,
    KDAEncoderConfig,
)
from cfg.encoder_linear import DeltaNetEncoderConfig, GLAEncoderConfig
from cfg.encoder_mamba2 import Mamba2EncoderConfig
from cfg.encoder_rnn import GRUEncoderConfig, LSTMEncoderConfig, RNNEncoderConfig
from cfg.encoder_rwkv7 import RWKV7EncoderConfig

__all__ = ["BACKENDS", "DIRECTIONS", "ENCODER_CONFIGS", "MODES", "POOLINGS", "STEMS", "CombaEncoderConfig",
           "DeltaNetEncoderConfig", "EncoderConfig", "GDN2EncoderConfig", "GLAEncoderConfig", "GRUEncoderConfig",
           "GatedDeltaNetEncoderConfig", "GatedDeltaProductEncoderConfig", "KDAEncoderConfig", "LSTMEncoderConfig",
           "Mamba2EncoderConfig", "RNNEncoderConfig", "RWKV7EncoderConfig"]

ENCODER_CONFIGS: Dict[str, Type[EncoderConfig]] = {
    "gated_deltanet": GatedDeltaNetEncoderConfig,
    "rwkv7": RWKV7EncoderConfig,
    "kda": KDAEncoderConfig,
    "delta_net": DeltaNetEncoderConfig,
    "gated_deltaproduct": GatedDeltaProductEncoderConfig,
    "gdn2": GDN2EncoderConfig,
    "comba": CombaEncoderConfig,
    "gla": GLAEncoderConfig,
    "mamba2": Mamba2EncoderConfig,
    "gru": GRUEncoderConfig,
    "lstm": LSTMEncoderConfig,
}

"""Small encoders with weights that make every part of them matter, for tests of compilers and exporters."""

import torch

from cfg.encoder import GatedDeltaNetEncoderConfig, RWKV7EncoderConfig
from encoders import build_encoder

STRATEGIES = ("gated_deltanet", "rwkv7")
ENTRIES = (*STRATEGIES, "inception")
"""Strategies, and one with a stem that has a state."""


def small_encoder(name, dtype=torch.float32, num_layers=1, **more):
    if name == "inception":
        return small_encoder("gated_deltanet", dtype, num_layers, **{"stem": name, "stem_kernel": 5, **more})
    common = {"input_size": 3, "hidden_size": 8, "num_layers": num_layers, "head_dim": 4, "dropout": 0.0, **more}
    if name == "rwkv7":
        encoder = build_encoder(RWKV7EncoderConfig(**common))
    else:
        encoder = build_encoder(GatedDeltaNetEncoderConfig(num_heads=2, **common))
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return encoder.to(dtype).eval()

"""Initial values of RWKV-7's parameters, by position in the channels and in the depth of the model."""

from typing import Any

import torch
from torch import nn

from myfla.layers.lora import orthogonal_

__all__ = ["reset_rwkv7"]

MIXES = {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}
"""Exponents of the mixing vectors in the first layer."""


@torch.no_grad()
def reset_rwkv7(layer: Any) -> None:
    """Set and draw all parameters of an `RWKV7Attention` as fla 0.6.0 and RWKV-LM do.

    Without ``layer_idx`` the layer begins as the only one of a model (fla leaves it at zero, where its key has no
    direction); without ``num_hidden_layers`` as the last one.
    """
    index = layer.layer_idx or 0
    depth = layer.num_hidden_layers or index + 1
    rising, falling = index / max(depth - 1, 1), 1.0 - index / depth  # 0 to 1, 1 to nearly 0
    hidden, head = layer.hidden_size, layer.head_dim
    place = torch.arange(hidden, dtype=torch.float64, device="cpu")
    linear = _linear(hidden)
    middle = max((head - 1) / 2, 0.5)
    zigzag = (place % head - (head - 1) / 2) / middle
    zigzag = zigzag * zigzag.abs()
    decay = -6 + 6 * (place / max(hidden - 1, 1)) ** (1 + rising**0.3)

    for name, power in MIXES.items():
        _set(getattr(layer, name), 1 - (place / hidden) ** (power * falling))
    _set(layer.k_k, 0.71 - 0.1 * linear)
    nn.init.constant_(layer.k_a, 1.02)
    nn.init.constant_(layer.r_k, -0.04)
    for lora in (layer.w_lora, layer.a_lora, layer.g_lora, getattr(layer, "v_lora", None)):
        if lora is not None:
            lora.reset_parameters()
    layer.w_lora.set_bias_value(decay + 0.5 + 2.5 * zigzag)
    layer.a_lora.set_bias_value(-0.19 + 0.3 * zigzag + 0.4 * linear)
    if hasattr(layer, "v_lora"):
        layer.v_lora.set_bias_value(0.73 - 0.4 * _linear(layer.value_dim))
    norm = layer.g_norm
    if norm.weight is not None and norm.bias is not None:
        nn.init.constant_(norm.weight, ((index + 1) / depth) ** 0.7)
        nn.init.zeros_(norm.bias)
    orthogonal_(layer.r_proj.weight)
    orthogonal_(layer.k_proj.weight, gain=0.1)
    orthogonal_(layer.v_proj.weight)
    nn.init.zeros_(layer.o_proj.weight)


def _linear(size: int) -> torch.Tensor:
    """From -0.5 to 0.5 along the channels."""
    return torch.arange(size, dtype=torch.float64, device="cpu") / max(size - 1, 1) - 0.5


def _set(parameter: torch.Tensor, values: torch.Tensor) -> None:
    if parameter.device.type != "meta":
        parameter.copy_(values.view(parameter.shape))

"""RWKV-7 layers for tests, with no parameter left at a value that hides something."""

import torch

from myfla.layers.rwkv7 import RWKV7Attention


def build(layer_idx=0, hidden=24, heads=3, value=None, dtype=torch.float64, seed=0, **more):
    """A small layer whose parameters are all random (official ones begin at zero in places)."""
    settings = dict(
        hidden_size=hidden, head_dim=None, num_heads=heads, value_dim=value, layer_idx=layer_idx, num_hidden_layers=4,
        decay_low_rank_dim=5, gate_low_rank_dim=6, a_low_rank_dim=4, v_low_rank_dim=3, dtype=dtype,
    )  # fmt: skip
    layer = RWKV7Attention(**{**settings, **more})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.3 * noise).to(parameter.dtype))
    return layer


def inputs(layer, batch=2, tokens=13, seed=0):
    """x, and v_first where the layer needs it."""
    generator = torch.Generator().manual_seed(100 + seed)
    dtype = layer.r_proj.weight.dtype
    x = torch.randn(batch, tokens, layer.hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    first = torch.randn(batch, tokens, layer.value_dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, (first if layer.layer_idx else None)

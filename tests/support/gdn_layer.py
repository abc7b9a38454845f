"""Small GatedDeltaNet layers for tests, and how to call them."""

import warnings

import torch

from myfla.layers.gated_deltanet import GatedDeltaNet

D = 12
SHAPES = {
    "plain": {},
    "grouped": {"num_v_heads": 4, "expand_v": 1.5},
    "bias": {"conv_bias": True, "conv_size": 3, "expand_v": 1},
    "sigmoid": {"output_gate_activation": "sigmoid", "conv_size": 1},
    "one_head": {"num_heads": 1, "head_dim": 6, "expand_v": 0.5, "norm_eps": 1e-3},
}


def build(dtype=torch.float64, seed=0, **flags):
    """A small layer whose every parameter differs from its initial value."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = GatedDeltaNet(**{**dict(hidden_size=D, head_dim=4, num_heads=2, layer_idx=0, dtype=dtype), **flags})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return layer


def inputs(batch, tokens, dtype=torch.float64, seed=1):
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(layer, x, cache=None, grad=False, **kwargs):
    """Output of a call, with the cache kept if there is one."""
    with torch.set_grad_enabled(grad):
        return layer(x, past_key_values=cache, use_cache=cache is not None, **kwargs)[0]


def tensors(state):
    return [state["recurrent_state"], *(state["conv_state"] or ())]

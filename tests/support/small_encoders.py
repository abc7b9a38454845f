"""Small encoders of every built-in strategy for tests, awake: no parameter left at a start that hides a layer."""

import torch

from cfg.encoder import ENCODER_CONFIGS
from encoders import build_encoder

FAMILY = ("kda", "delta_net", "gated_deltaproduct", "gdn2", "comba", "gla", "mamba2")
NAMES = ("gated_deltanet", "rwkv7", *FAMILY, "gru", "lstm")
WOVEN = ("gated_deltanet", "rwkv7", *FAMILY)  # those whose layers can begin in a state of the layer before
HEADED = tuple(name for name in NAMES if "head_dim" in ENCODER_CONFIGS[name].__dataclass_fields__ and name != "rwkv7")
"""Those whose heads have a size of their own."""
OWN = {
    "gated_deltanet": dict(num_heads=2, head_dim=4, num_v_heads=4, expand_v=1.5, allow_neg_eigval=True, conv_size=3),
    "rwkv7": dict(num_heads=2),
    "delta_net": dict(num_heads=2, allow_neg_eigval=True, conv_size=3),
    "gated_deltaproduct": dict(num_heads=2, head_dim=4, num_v_heads=4, expand_v=1.5, num_householder=3),
    "kda": dict(num_heads=2, head_dim=4, num_v_heads=4, expand_v=1.5, lower_bound=-4.0),
    "gla": dict(num_heads=2, expand_k=1.0, use_short_conv=True, feature_map="relu"),
    "gdn2": dict(num_heads=2, head_dim=4, num_v_heads=4, expand_v=1.5, allow_neg_eigval=True),
    "mamba2": dict(head_dim=4, state_size=6, n_groups=2),
    "comba": dict(num_heads=2, head_dim=4, num_v_heads=4, expand_v=1.5, correction_factor=0.5),
}


def wake(module, seed=0, scale=0.3):
    """Move every parameter away from its start (RWKV-7 starts with zero output projections, which hide the layer)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (scale * noise).to(parameter.dtype)
    return module


def small(name, dtype=torch.float64, seed=0, scale=0.3, **changes):
    """An encoder of two layers, 3 channels in, 8 wide, in eval mode."""
    config = dict(name=name, input_size=None if "vocab_size" in changes else 3, hidden_size=8, num_layers=2)
    torch.manual_seed(seed)
    return wake(build_encoder({**config, **OWN.get(name, {}), **changes}, dtype=dtype), seed, scale).eval()

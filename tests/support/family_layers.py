"""Small layers of the delta rule's family for tests, by name and settings."""

import warnings
from typing import Any, Dict

import torch

from myfla import layers
from small_encoders import wake

D = 12
VARIANTS: Dict[str, Dict[str, Dict[str, Any]]] = {
    "DeltaNet": {
        "": dict(num_heads=2),
        "plain": dict(num_heads=2, use_gate=True, use_short_conv=False, qk_activation="elu", qk_norm="sum"),
    },
    "GatedDeltaProduct": {
        "": dict(head_dim=4, num_heads=2, num_v_heads=4),
        "three": dict(head_dim=4, num_heads=2, expand_v=1.5, num_householder=3, use_forget_gate=False,
                      use_output_gate=False, conv_bias=True),
    },
    "GatedDeltaNet2": {
        "": dict(head_dim=4, num_heads=2),
        "grouped": dict(head_dim=4, num_heads=2, num_v_heads=4, expand_v=1.5, allow_neg_eigval=True),
    },
    "KimiDeltaAttention": {
        "": dict(head_dim=4, num_heads=2, num_v_heads=4, expand_v=1.5),
        "bounded": dict(head_dim=4, num_heads=2, safe_gate=True, lower_bound=-4.0, allow_neg_eigval=True,
                        use_short_conv=False),
    },
    "GatedLinearAttention": {
        "": dict(num_heads=2, expand_k=1.0),
        "shared": dict(num_heads=2, num_kv_heads=1, use_short_conv=True, feature_map="relu", clamp_min=-0.05,
                       fuse_norm=False, gate_fn="sigmoid"),
    },
    "Comba": {
        "": dict(head_dim=4, num_heads=2, num_v_heads=4),
        "plain": dict(head_dim=4, num_heads=2, use_output_correction=False, use_inner_decay=False,
                      use_output_gate=False, use_short_conv=False),
    },
    "Mamba2": {
        "": dict(head_dim=4, state_size=6, n_groups=2),
        "plain": dict(head_dim=8, state_size=5, D_has_hdim=True, rmsnorm=False, hidden_act="gelu", use_bias=True,
                      use_conv_bias=False, dt_limit=(0.01, 0.5), conv_kernel=3),
        "norm first": dict(head_dim=12, state_size=8, expand=1, norm_before_gate=True),
    },
}
"""By class, what to build it with beside ``hidden_size`` and ``layer_idx``."""
ALL = [f"{name}_{variant}".rstrip("_") for name, variants in VARIANTS.items() for variant in variants]


def settings(name: str) -> Dict[str, Any]:
    """The arguments of one of `ALL`."""
    kind, _, variant = name.partition("_")
    return {"hidden_size": D, "layer_idx": 0, **VARIANTS[kind][variant]}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **flags: Any) -> torch.nn.Module:
    """One of `ALL` whose every parameter differs from its initial value, in eval mode."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = getattr(layers, name.partition("_")[0])(**{**settings(name), "dtype": dtype, **flags})
    return wake(layer, seed, scale=0.1).eval()

"""Models of transformers with Mamba-2, and one with short convolutions only: 1024 wide, with 4 layers.

Otherwise every model has the defaults of its configuration, except for a vocabulary of 8192, heads in proportion to its
width and, in Nemotron-H, feed-forward layers in place of experts.
"""

from typing import Any, Dict

import torch

ATTENTION = dict(num_attention_heads=16, num_key_value_heads=4)
WIDTH = dict(hidden_size=1024, num_hidden_layers=4, vocab_size=8192)
MIXED = dict(WIDTH, **ATTENTION, intermediate_size=2816)

MODELS: Dict[str, Dict[str, Any]] = {
    "mamba2": dict(WIDTH, num_heads=32, n_groups=1),
    "bamba": dict(MIXED, attn_layer_indices=[3], mamba_n_heads=32, mamba_d_state=128),
    "falcon_h1": dict(MIXED, mamba_d_ssm=1024, mamba_n_heads=16, mamba_d_state=256),
    "granitemoehybrid": dict(
        MIXED, layer_types=["mamba", "mamba", "mamba", "attention"], mamba_n_heads=32, mamba_d_state=128,
        num_local_experts=0, shared_intermediate_size=2816),
    "nemotron_h": dict(
        WIDTH, **ATTENTION, layers_block_type=["mamba", "mlp", "mamba", "attention"], head_dim=64,
        intermediate_size=4096, mamba_num_heads=32, n_groups=8),
    "zamba2": dict(
        WIDTH, num_attention_heads=16, layers_block_type=["mamba", "mamba", "mamba", "hybrid"], n_mamba_heads=32,
        intermediate_size=4096),
    "lfm2": dict(
        MIXED, layer_types=["conv", "conv", "full_attention", "conv"], num_key_value_heads=8, intermediate_size=4096),
}  # fmt: skip
"""For each family the differences from the defaults of its configuration."""


def build(family: str) -> torch.nn.Module:
    """The model of a key of `MODELS`, randomly initialised."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**MODELS[family])
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    return AutoModelForCausalLM.from_config(config).eval()

"""A small model of every family of transformers with a gated delta rule, with weights under which the rule matters."""

import contextlib
import importlib
import inspect

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from myfla.integrations import hf_modules

WIDTH = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=97)
RULE = dict(linear_key_head_dim=8, linear_value_head_dim=12, linear_num_key_heads=2, linear_num_value_heads=4)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
INDEXER = dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=64, indexer_compress_ratio=4)
CONFIGS = {
    "qwen3_next": ("qwen3_next", dict(RULE, **EXPERTS, head_dim=8, intermediate_size=48)),
    "qwen3_5": ("qwen3_5_text", dict(RULE, head_dim=8, intermediate_size=48)),
    "qwen3_5_moe": ("qwen3_5_moe_text", dict(RULE, **EXPERTS, head_dim=8)),
    "qwen4_exp": ("qwen4_exp_text", dict(RULE, **EXPERTS, head_dim=8, hc_count=2, hc_lowrank=8, **INDEXER)),
    "olmo_hybrid": ("olmo_hybrid", dict(RULE, linear_num_value_heads=2, intermediate_size=48, pad_token_id=0)),
}
"""By family: the name of its text model's configuration, and what differs from `WIDTH`."""


def build(family, seed=0):
    """A causal language model in float32, in eval mode."""
    name, options = CONFIGS[family]
    options = dict(WIDTH, **options)
    options.setdefault("pad_token_id", None)
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[name](**options, bos_token_id=None, eos_token_id=None, experts_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).eval()
    for layer in model.modules():
        if type(layer).__name__.endswith("RMSNormGated"):
            # A query that finds nothing reads almost zero, which the norm would scale up, rounding and all.
            layer.variance_epsilon = 0.1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                fan_in = 1 if "embed" in name else weight[0].numel()
                weight.normal_(std=fan_in**-0.5)
            elif name.endswith("dt_bias"):
                weight.uniform_(-5, 0)
    return model


def tokens(batch, length, seed=1):
    """Token ids ``[batch, length]``, none of them 0."""
    return torch.randint(1, WIDTH["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def plain_transformers(family):
    """transformers' functions in pure PyTorch, without fla and causal_conv1d even where those are installed."""
    module = importlib.import_module(hf_modules.model_files()[family])
    before = {name: getattr(module, name) for name in hf_modules.called_kernels(module)}
    for name, function in before.items():
        setattr(module, name, inspect.unwrap(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)

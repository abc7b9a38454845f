"""A small model of every family of transformers that `use_myfla` serves, with weights under which the rule matters."""

import contextlib
import importlib
import inspect
import types

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from myfla.integrations import hf_models

VOCABULARY = 97
WIDTH = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, vocab_size=VOCABULARY)
RULE = dict(
    WIDTH, num_key_value_heads=2, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=12, linear_num_key_heads=2,
    linear_num_value_heads=4, intermediate_size=48,
)  # fmt: skip
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
INDEXER = dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=64, indexer_compress_ratio=4)
LAYERS = ["linear_attention"] * 3 + ["full_attention"]
LARA_LAYERS = ["linear_attention", "sliding_attention", "linear_attention", "full_attention"]
CHANNELS = dict(
    WIDTH, num_key_value_heads=4, linear_head_dim=8, linear_num_heads=4, kv_lora_rank=16, qk_nope_head_dim=8,
    v_head_dim=8, intermediate_size=48, moe_intermediate_size=16, num_experts_per_tok=2, n_group=1, topk_group=1,
    layer_types=LAYERS, mlp_layer_types=["dense", "sparse", "sparse", "dense"], routed_scaling_factor=1.0,
)  # fmt: skip
GLM = dict(
    CHANNELS, q_lora_rank=16, n_routed_experts=4, index_topk=64, index_head_dim=8, index_n_heads=2, index_kpool=4,
    hc_mult=2, indexer_types=["full"] * 4,
)  # fmt: skip
MIXED = ["mamba", "mamba", "mamba", "attention"]
MAMBA = dict(
    WIDTH, num_key_value_heads=2, intermediate_size=48, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=2,
    mamba_d_state=6, mamba_chunk_size=16,
)  # fmt: skip
CONVOLUTION = dict(
    WIDTH, num_key_value_heads=2, intermediate_size=48, layer_types=["conv", "conv", "full_attention", "conv"],
)  # fmt: skip
INKLING = dict(
    WIDTH, num_key_value_heads=2, head_dim=8, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8,
    sliding_window_size=16, d_rel=4, rel_extent=64, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2,
)  # fmt: skip
INKLING2 = dict(
    INKLING, log_scaling_n_floor=64, n_layers_per_attn_res_block=2, unpadded_vocab_size=VOCABULARY)
VISION = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32)

CONFIGS = {
    "qwen3_next": ("qwen3_next", dict(RULE, **EXPERTS)),
    "qwen3_5": ("qwen3_5_text", RULE),
    "qwen3_5_moe": ("qwen3_5_moe_text", dict(RULE, **EXPERTS)),
    "qwen4_exp": ("qwen4_exp_text", dict(RULE, **EXPERTS, **INDEXER, hc_count=2, hc_lowrank=8)),
    "olmo_hybrid": ("olmo_hybrid", dict(RULE, linear_num_value_heads=2)),
    "kimi_linear": ("kimi_linear", dict(CHANNELS, qk_rope_head_dim=4, num_local_experts=4)),
    "bailing_hybrid": ("bailing_hybrid", dict(CHANNELS, head_dim=8, qk_rope_head_dim=4, num_local_experts=4)),
    "lara_mini": ("lara_mini", dict(RULE, **EXPERTS, layer_types=LARA_LAYERS, sliding_window=16)),
    "glm5_next": ("glm5_next", dict(text_config=GLM, vision_config=VISION)),
    "mamba2": ("mamba2", dict(
        WIDTH, num_heads=8, head_dim=8, state_size=6, n_groups=2, chunk_size=16, time_step_limit=(0.01, 1.0))),
    "bamba": ("bamba", dict(MAMBA, attn_layer_indices=[3])),
    "falcon_h1": ("falcon_h1", dict(MAMBA, mamba_d_ssm=64, mamba_rms_norm=True, head_dim=8)),
    "granitemoehybrid": ("granitemoehybrid", dict(
        MAMBA, layer_types=MIXED, num_local_experts=4, shared_intermediate_size=16)),
    "nemotron_h": ("nemotron_h", dict(
        WIDTH, layers_block_type=["mamba", "moe", "attention", "mamba"], num_key_value_heads=2, head_dim=8,
        intermediate_size=48, ssm_state_size=6, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, chunk_size=16,
        n_routed_experts=4, moe_intermediate_size=16, moe_shared_expert_intermediate_size=16)),
    "zamba2": ("zamba2", dict(
        WIDTH, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], mamba_d_state=6, mamba_ngroups=2,
        n_mamba_heads=8, intermediate_size=48, chunk_size=16, adapter_rank=4)),
    "lfm2": ("lfm2", CONVOLUTION),
    "lfm2_moe": ("lfm2_moe", dict(CONVOLUTION, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)),
    "lfm3": ("lfm3", dict(CONVOLUTION, head_dim=8, sliding_window=16)),
    "inkling": ("inkling_text", dict(INKLING, intermediate_size=48)),
    "inkling2": ("inkling2_text", INKLING2),
    "inkling2_loop": ("inkling2_loop_text", dict(
        INKLING2, loop_layer_index_start=2, loop_layer_index_end=4, loop_num_passes=2, loop_gate_rank=4)),
}
assert CONFIGS.keys() == hf_models.FAMILIES
OLD = Version(transformers.__version__) < Version("5.23")
"""There transformers' own Falcon-H1 makes two tokens of one, Nemotron-H takes another family's norm, and Mamba-2's norm
knows no groups; and none of the three hands the offsets of packed sequences to its layers."""
CONVOLUTIONS = ("lfm2", "lfm2_moe", "lfm3", "inkling", "inkling2", "inkling2_loop")
"""Those that have a short convolution and no rule."""
CONFIGS = {family: config for family, config in CONFIGS.items() if config[0] in CONFIG_MAPPING}
"""By family that the installed version has: its configuration's name, and what differs from the large models'."""


def build(family, seed=0):
    """A causal language model in float32, in eval mode."""
    name, options = CONFIGS[family]
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[name](**options, experts_implementation="eager")
    text = config.get_text_config()
    text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, None, None
    auto = AutoModelForImageTextToText if "vision_config" in options else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    for layer in model.modules():
        if type(layer).__name__.endswith("RMSNormGated"):
            # A query that finds nothing reads almost zero, which the norm would scale up, rounding and all.
            layer.variance_epsilon = 0.1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "A_log" not in name:
                weight.normal_(std=1 if "embed" in name else weight[0].numel() ** -0.5)
            elif name.endswith("dt_bias"):
                weight.uniform_(-5, 0)
    return model


def tokens(batch, length, seed=1):
    """Token ids ``[batch, length]``, none of them 0."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def plain_transformers(family):
    """transformers' functions in pure PyTorch, without fla and causal_conv1d even where those are installed."""
    module = importlib.import_module(hf_models.model_files()[family])
    names = [target.name for target in hf_models.targets(module) if target.owner is module]
    before = {name: getattr(module, name) for name in names}
    for name, function in before.items():
        setattr(module, name, inspect.unwrap(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


class _Wide(types.ModuleType):
    """torch, but for its float32."""

    def __getattr__(self, name):
        return torch.float64 if name in ("float32", "float") else getattr(torch, name)


@contextlib.contextmanager
def in_float64(family):
    """What a model file widens to float32 becomes float64: a model in float64 then computes in nothing else."""
    module, narrow = importlib.import_module(hf_models.model_files()[family]), torch.Tensor.float
    module.torch, torch.Tensor.float = _Wide("torch"), torch.Tensor.double
    try:
        yield
    finally:
        module.torch, torch.Tensor.float = torch, narrow

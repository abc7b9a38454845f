"""The initialisation and the settings of models."""

import json
import math
import warnings

import torch

from myfla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, RWKV7Config, RWKV7ForCausalLM
from myfla.testing import assert_close, cases, raises
from small_models import KINDS, VOCABULARY, prompt, small_config, small_model


def test_a_fresh_gated_deltanet_follows_the_official_law():
    config = GatedDeltaNetConfig(hidden_size=128, head_dim=32, num_heads=2, num_v_heads=32, num_hidden_layers=1,
                                 vocab_size=400, initializer_range=0.05, pad_token_id=3)
    model = GatedDeltaNetForCausalLM(config)
    drawn = 0
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("A_log"):
            assert parameter.exp().max() <= 16 and parameter.exp().std() > 3
        elif name.endswith("dt_bias"):
            step = torch.nn.functional.softplus(parameter)
            assert step.min() >= 9e-4 and step.max() <= 0.11
        else:
            assert abs(parameter.std() / 0.05 - 1) < 0.2 and parameter.mean().abs() < 0.01, name
            drawn += 1
    assert drawn == 15 and model.get_input_embeddings().padding_idx == 3
    assert model.model.layers[0].attn.A_log._no_weight_decay


@cases(vocabulary=[32, 200])
def test_a_fresh_rwkv7_follows_the_official_law(vocabulary):
    model = RWKV7ForCausalLM(RWKV7Config(hidden_size=64, head_dim=16, num_hidden_layers=2, vocab_size=vocabulary))
    embeddings, head = model.model.embeddings.weight, model.lm_head.weight.double()
    assert 0.9e-4 < embeddings.abs().max() <= 1e-4
    gain = 0.5 * math.sqrt(max(vocabulary / 64, 1))
    product = head @ head.T if vocabulary < 64 else head.T @ head
    assert_close(product, gain**2 * torch.eye(len(product)).double(), rms=1e-5)
    for layer in model.model.layers:
        assert layer.attn.o_proj.weight.abs().max() == 0 and layer.ffn.value.weight.abs().max() == 0
        assert (layer.attn_norm.weight == 1).all() and layer.attn.k_a.min() == layer.attn.k_a.max()
    assert hasattr(model.model.layers[0], "pre_norm") and not hasattr(model.model.layers[1], "pre_norm")


@cases(kind=KINDS)
def test_tied_weights_are_one_parameter(kind):
    model = small_model(kind, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embeddings.weight
    free = small_model(kind)
    assert free.num_parameters() - model.num_parameters() == VOCABULARY * 32
    other = torch.nn.Embedding(VOCABULARY, 32)
    model.set_input_embeddings(other)
    assert model.lm_head.weight is other.weight and model.get_output_embeddings() is model.lm_head


@cases(kind=KINDS)
def test_settings_reach_the_blocks(kind):
    if kind in ("delta_net", "gated_deltaproduct", "kda"):
        model = small_model(kind, use_short_conv=True, conv_size=3, hidden_act="powlu", attn_mode="fused_recurrent",
                            norm_eps=1e-3, expand_v=2.0)
        attn = model.model.layers[1].attn
        assert (attn.conv_size, attn.mode, attn.layer_idx, attn.expand_v) == (3, "fused_recurrent", 1, 2.0)
        assert model.model.layers[0].mlp.hidden_act == "powlu" and model.model.norm.eps == 1e-3
        own = {"delta_net": dict(use_beta=False, qk_norm="sum", qk_activation="elu", use_gate=False, expand_k=2.0),
               "gated_deltaproduct": dict(num_householder=3, use_forget_gate=False, use_output_gate=False),
               "kda": dict(safe_gate=True, lower_bound=-4.0, allow_neg_eigval=True)}[kind]
        attn = small_model(kind, **own).model.layers[1].attn
        assert {name: getattr(attn, name) for name in own} == own
    elif kind == "gated_deltanet":
        model = small_model(kind, use_gate=False, use_short_conv=True, conv_size=3, allow_neg_eigval=True,
                            hidden_act="powlu", attn_mode="fused_recurrent", norm_eps=1e-3, expand_v=1.0)
        attn = model.model.layers[1].attn
        assert (attn.use_gate, attn.conv_size, attn.allow_neg_eigval, attn.mode, attn.layer_idx) == (
            False, 3, True, "fused_recurrent", 1)
        assert model.model.layers[0].mlp.hidden_act == "powlu" and model.model.norm.eps == 1e-3
        assert attn.head_v_dim == 8 and model.model.layers[0].attn_norm.eps == 1e-3 and attn.o_norm.eps == 1e-3
    else:
        model = small_model(kind, norm_first=False, norm_bias=False, fuse_norm=False, value_dim=64, norm_eps=1e-3)
        layer = model.model.layers[0]
        assert not hasattr(layer, "pre_norm") and layer.attn_norm.bias is None and not layer.attn.fuse_norm
        assert layer.attn.value_dim == 64 and layer.ffn_norm.eps == 1e-3 and model.config.value_dim == [64, 64]
    assert model(prompt()).logits.isfinite().all()


@cases(kind=KINDS)
def test_configs_keep_unknown_keys_and_survive_json(kind):
    config = small_config(kind, my_key={"a": [1]}, torch_dtype="bfloat16")
    assert config.my_key == {"a": [1]} and config.dtype == "bfloat16" and not hasattr(config, "torch_dtype")
    again = type(config).from_dict(json.loads(config.to_json_string()))
    assert again == config and again.to_dict()["model_type"] == kind and config.architectures is None
    assert again != small_config(kind) and config.return_dict is True
    with raises(AttributeError, "hiden_size"):
        config.hiden_size  # noqa: B018


def test_configs_have_the_official_defaults():
    gdn, rwkv = GatedDeltaNetConfig(), RWKV7Config()
    facts = {"hidden_size": (2048, 2048), "num_hidden_layers": (21, 24), "head_dim": (256, 64), "num_heads": (6, 32),
             "norm_eps": (1e-6, 1e-5), "use_l2warp": (False, True), "eos_token_id": (2, 2), "fuse_norm": (True, True),
             "vocab_size": (32000, 32000), "hidden_act": ("swish", "sqrelu"), "initializer_range": (0.02, 0.02)}
    for name, wanted in facts.items():
        assert (getattr(gdn, name), getattr(rwkv, name)) == wanted, name
    assert (rwkv.decay_low_rank_dim, rwkv.gate_low_rank_dim, rwkv.a_low_rank_dim, rwkv.v_low_rank_dim) == (
        64, 128, 64, 16)
    assert RWKV7Config(hidden_size=96, head_dim=None, num_heads=3).head_dim == 32


def test_wrong_configs_are_refused():
    for field, value in (("hidden_size", 0), ("num_hidden_layers", "3"), ("vocab_size", True), ("head_dim", -1)):
        for config in (GatedDeltaNetConfig, RWKV7Config):
            with raises(ValueError, config.__name__, field, repr(value)):
                config(**{field: value})
    with raises(ValueError, "attn must be None", "official class does not run with attention layers either"):
        RWKV7Config(attn={"layers": [1], "num_heads": 2})
    for config in (GatedDeltaNetConfig, RWKV7Config):
        assert config(attn={"layers": [], "num_heads": 2}).attn["num_heads"] == 2
        with raises(ValueError, "fuse_linear_cross_entropy excludes fuse_cross_entropy"):
            config(fuse_linear_cross_entropy=True)
        with raises(ValueError, "to_dict", "name of a method"):
            config(to_dict=1)
        with raises(ValueError, "model_type", "llama"):
            config(model_type="llama")
    with raises(ValueError, "output_gate_activation", "tanh"):
        GatedDeltaNetConfig(output_gate_activation="tanh")
    with raises(ValueError, "value_dim", "one for each block"):
        RWKV7Config(hidden_size=64, num_hidden_layers=2, value_dim=[64])
    with raises(ValueError, "value_dim", "multiple of hidden_size=64"):
        RWKV7Config(hidden_size=64, value_dim=96)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        GatedDeltaNetConfig(fuse_cross_entropy=False, fuse_linear_cross_entropy=True)
    assert any("logits are not returned" in str(w.message) for w in seen)

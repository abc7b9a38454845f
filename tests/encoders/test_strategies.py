"""What a config says reaches the layers, the MLP and the norms."""

import dataclasses

import torch

from cfg.encoder import ENCODER_CONFIGS, EncoderConfig
from encoders import StackCall, build_encoder
from myfla.modules.layernorm import LayerNorm, RMSNorm
from myfla.modules.mlp import GatedMLP
from myfla.testing import cases, raises

CHANGED = {
    "gated_deltanet": dict(num_heads=2, head_dim=12, expand_v=1.5, num_v_heads=8, mode="fused_recurrent",
                           use_gate=False, use_short_conv=False, allow_neg_eigval=True, conv_size=3,
                           conv_bias=True, output_gate_activation="sigmoid", backend="naive"),
    "rwkv7": dict(num_heads=3, head_dim=8, value_dim=48, decay_low_rank_dim=5, gate_low_rank_dim=6, a_low_rank_dim=7,
                  v_low_rank_dim=9, mode="fused_recurrent", fuse_norm=True, backend="torch"),
    "delta_net": dict(num_heads=2, expand_k=0.5, expand_v=1.5, mode="fused_recurrent", use_short_conv=False,
                      conv_size=3, conv_bias=True, use_beta=False, use_gate=True, allow_neg_eigval=True,
                      qk_activation="elu", qk_norm="sum", backend="naive"),
    "gated_deltaproduct": dict(num_heads=2, head_dim=12, expand_v=1.5, num_v_heads=8, mode="fused_recurrent",
                               use_short_conv=False, conv_size=3, conv_bias=True, use_output_gate=False,
                               use_forget_gate=False, allow_neg_eigval=False, num_householder=3, backend="naive"),
    "kda": dict(num_heads=2, head_dim=12, expand_v=1.5, num_v_heads=8, mode="fused_recurrent", use_short_conv=False,
                conv_size=3, conv_bias=True, allow_neg_eigval=True, safe_gate=True, lower_bound=-4.0, backend="naive"),
    "gla": dict(num_heads=2, expand_k=0.5, expand_v=1.5, mode="fused_recurrent", use_short_conv=True, conv_size=3,
                conv_bias=True, num_kv_heads=2, feature_map="relu", use_output_gate=False, gate_fn="sigmoid",
                gate_logit_normalizer=8, gate_low_rank_dim=4, clamp_min=-0.5, backend="naive"),
    "gdn2": dict(num_heads=2, head_dim=12, expand_v=1.5, num_v_heads=8, mode="fused_recurrent", use_short_conv=False,
                 conv_size=3, conv_bias=True, allow_neg_eigval=True, backend="naive"),
    "comba": dict(num_heads=2, head_dim=12, expand_v=1.5, num_v_heads=8, mode="fused_recurrent", use_short_conv=False,
                  conv_size=3, conv_bias=True, use_output_gate=False, use_output_correction=False,
                  use_inner_decay=False, correction_factor=0.5, backend="naive"),
    "mamba2": dict(expand=1.5, head_dim=6, state_size=5, n_groups=2, conv_kernel=3, use_conv_bias=False,
                   hidden_act="relu", D_has_hdim=True, rmsnorm=False, norm_before_gate=True, use_bias=True,
                   dt_min=0.01, dt_max=0.2, backend="naive"),
}  # fmt: skip
SETTINGS = [(name, flag) for name, flags in CHANGED.items() for flag in flags]


def build(name, **changes):
    return build_encoder({"name": name, "input_size": 3, "hidden_size": 24, **changes})


@cases(name=list(CHANGED))
def test_every_own_field_is_tried_below(name):
    shared = {field.name for field in dataclasses.fields(EncoderConfig)}
    own = {field.name for field in dataclasses.fields(ENCODER_CONFIGS[name])} - shared
    assert set(CHANGED[name]) == own - {"attn"}  # which is no layer's flag: tests/encoders/test_attention_layers.py


@cases(setting=SETTINGS)
def test_every_own_field_reaches_every_layer(setting):
    name, flag = setting
    value, needed = CHANGED[name][flag], {"safe_gate": {"lower_bound": -4.0}}.get(flag, {})
    encoder = build(name, direction="bidirectional", **{flag: value}, **needed)
    for i, block in enumerate([*encoder.blocks, *encoder.backward_blocks]):
        assert getattr(block.mixer, flag) == value
        assert block.mixer.layer_idx == i % 2


@cases(name=list(CHANGED))
def test_shared_fields_reach_every_part(name):
    encoder = build(name, norm_eps=0.125, mlp_ratio=1.5, dropout=0.25, drop_path=0.5, num_layers=3,
                    direction="bidirectional")
    assert len(encoder.blocks) == len(encoder.backward_blocks) == 3
    for block in [*encoder.blocks, *encoder.backward_blocks]:
        assert block.mixer.hidden_size == 24 and block.mixer.norm_eps == 0.125 and block.dropout.p == 0.25
        assert block.drop_path == 0.5
        assert block.mixer_norm.eps == block.mlp_norm.eps == encoder.norm.eps == 0.125
        assert block.mlp.intermediate_size == 36


def test_gated_deltanet_stands_in_the_official_model_s_block():
    encoder = build("gated_deltanet")
    assert type(encoder.norm) is RMSNorm
    for block in encoder.blocks:
        assert type(block.mixer_norm) is type(block.mlp_norm) is RMSNorm and type(block.mlp) is GatedMLP


def test_rwkv7_stands_in_the_official_model_s_block():
    encoder = build("rwkv7")
    kinds = [type(block.entry_norm) for block in encoder.blocks]
    assert kinds == [LayerNorm, torch.nn.Identity] and type(encoder.norm) is LayerNorm
    for block in encoder.blocks:
        assert all(norm.bias is not None for norm in (block.mixer_norm, block.mlp_norm))
        assert block.mixer.num_hidden_layers == block.mlp.num_hidden_layers == 2
        assert block.mlp.layer_idx == block.mixer.layer_idx


def test_layers_of_rwkv7_share_the_values_of_the_first():
    encoder = build("rwkv7", num_layers=3, direction="bidirectional")
    seen = {}

    for side, blocks in (("ahead", encoder.blocks), ("back", encoder.backward_blocks)):
        for i, block in enumerate(blocks):
            original = block.mixer.forward

            def spy(*arguments, original=original, key=(side, i), **keywords):
                result = original(*arguments, **keywords)
                seen[key] = (keywords["v_first"], result[3])
                return result

            block.mixer.forward = spy
    encoder(torch.randn(2, 4, 3))
    for side in ("ahead", "back"):
        assert seen[side, 0][0] is None
        assert seen[side, 1][0] is seen[side, 0][1] and seen[side, 2][0] is seen[side, 0][1]
    assert not torch.equal(seen["ahead", 0][1], seen["back", 0][1])


def test_a_layer_that_refuses_its_size_says_so():
    with raises(ValueError, "encoder.num_heads must divide encoder.hidden_size=24; got 5"):
        build("rwkv7", num_heads=5)


@cases(name=["gru", "lstm"], packed=[False, True])
def test_recurrent_layers_are_pytorch_s_own(name, packed):
    encoder = build(name, state_size=5, num_layers=1)
    mixer, x = encoder.blocks[0].mixer, torch.randn(2, 4, 24)
    assert type(mixer.rnn).__name__.lower() == name and mixer.state_size == 5
    call = StackCall(torch.tensor([0, 4, 4, 8], dtype=torch.int32) if packed else None)
    y, _ = mixer(x.view(1, 8, 24) if packed else x, call, None)
    assert torch.allclose(y.view(2, 4, 24), mixer.out(mixer.rnn(x)[0]), atol=1e-6)

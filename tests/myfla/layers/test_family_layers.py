"""The layers of the delta rule's family against their equations in float64, with every gradient.

What holds for every layer (masks, packing, splits, sessions) is in test_state_properties_layers.py, the official
layers' recorded results in test_layer_goldens.py.
"""

import warnings

import torch

import family_layers
import family_truth
import layer_truth
from myfla import layers
from myfla.testing import assert_close, cases
from small_encoders import wake

HEADS = dict(head_dim=4, num_heads=2, num_v_heads=4, expand_v=1.5)
SETTINGS = {
    "DeltaNet": [
        dict(num_heads=2, use_beta=False), dict(num_heads=2, use_beta=False, allow_neg_eigval=True),
        dict(num_heads=3, qk_activation="relu", conv_bias=True),
        dict(num_heads=2, qk_activation="identity", use_gate=True),
        dict(num_heads=2, qk_activation="elu", qk_norm="sum", conv_size=2),
        dict(num_heads=2, qk_activation="silu", qk_norm="sum"),
        dict(num_heads=2, expand_v=2.0, allow_neg_eigval=True, use_short_conv=False)],
    "GatedDeltaProduct": [
        dict(HEADS, num_householder=1), dict(HEADS, num_householder=3, allow_neg_eigval=False, conv_bias=True),
        dict(HEADS, use_forget_gate=False, use_output_gate=False), dict(HEADS, use_short_conv=False)],
    "GatedDeltaNet2": [
        dict(HEADS), dict(HEADS, allow_neg_eigval=True, conv_bias=True), dict(HEADS, use_short_conv=False)],
    "KimiDeltaAttention": [
        dict(HEADS), dict(HEADS, lower_bound=-2.0), dict(HEADS, safe_gate=True, lower_bound=-5.0, conv_size=3),
        dict(HEADS, allow_neg_eigval=True, use_short_conv=False), dict(HEADS, conv_bias=True)],
    "Comba": [
        dict(HEADS), dict(HEADS, use_output_correction=False),
        dict(HEADS, use_inner_decay=False, correction_factor=0.3),
        dict(HEADS, use_output_gate=False, conv_bias=True), dict(HEADS, use_short_conv=False)],
    "GatedLinearAttention": [
        dict(num_heads=2), dict(num_heads=2, num_kv_heads=1, expand_k=1.0, feature_map="relu", use_short_conv=True),
        dict(num_heads=2, use_output_gate=False, clamp_min=-0.02),
        dict(num_heads=2, gate_fn="sigmoid", fuse_norm=False),
        dict(num_heads=2, gate_logit_normalizer=4, use_short_conv=True, conv_bias=True, feature_map="sigmoid")],
}
ALL = [(kind, number) for kind, several in SETTINGS.items() for number in range(len(several))]


def test_every_layer_of_the_family_is_here():
    assert {*SETTINGS, "Mamba2"} == set(family_layers.VARIANTS), "Mamba2's loop is in layer_truth"


@cases(setting=ALL, mode=["chunk", "fused_recurrent"])
def test_outputs_and_gradients_equal_the_equations(setting, mode):
    kind, number = setting
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = dict(hidden_size=12, layer_idx=0, mode=mode, dtype=torch.float64, **SETTINGS[kind][number])
        layer = getattr(layers, kind)(**given)
    layer, x = wake(layer, number, 0.2).eval(), torch.randn(2, 19, 12, dtype=torch.float64, requires_grad=True)
    parameters = layer_truth.parameters_of(layer)
    want = family_truth.forward(layer, parameters, x)
    do = torch.randn_like(want)
    exact = torch.autograd.grad((want * do).sum(), [x, *parameters.values()], allow_unused=True)
    y = layer(x)[0]
    assert_close(y, want, rms=1e-10)
    own = torch.autograd.grad((y * do).sum(), [x, *dict(layer.named_parameters()).values()], allow_unused=True)
    for part, got, right in zip(["x", *parameters], own, exact):
        assert (got is None) == (right is None), part
        if right is not None:
            assert_close(got, right, rms=1e-9, name=part)
    with torch.no_grad():
        assert_close(layer(x)[0], want, rms=1e-10)

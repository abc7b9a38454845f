"""GatedDeltaNet's errors about wrong settings, inputs, masks, offsets and caches.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/layers/test_gated_deltanet_arguments.py``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(ROOT / "libs"))

import warnings  # noqa: E402

import torch  # noqa: E402

from myfla.layers.gated_deltanet import GatedDeltaNet  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import cases, raises, run_as_script  # noqa: E402
from myfla.utils.errors import CacheError  # noqa: E402

SMALL = dict(hidden_size=12, head_dim=4, num_heads=2, layer_idx=0)


def build(**flags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GatedDeltaNet(**{**SMALL, **flags})


def filled(layer, batch=2, tokens=3, dtype=torch.float32):
    cache = Cache()
    with torch.no_grad():
        layer.eval()(torch.randn(batch, tokens, 12, dtype=dtype), past_key_values=cache, use_cache=True)
    return cache


WRONG_SETTINGS = {
    "hidden_size": [0, -1, 1.5, "12", True], "head_dim": [0, -4, 2.0], "num_heads": [0, -2, None],
    "num_v_heads": [0, -2, 1, 3], "conv_size": [0, -1, 2.5], "expand_v": [0, -1, 1.3, float("nan"), "2", 1e-9],
    "mode": ["recurrent", None], "use_gate": ["false", 1], "use_short_conv": [None], "allow_neg_eigval": [2],
    "conv_bias": ["yes"], "layer_idx": [-1, 1.0, "0"], "norm_eps": [-1e-5, float("inf"), "x"],
    "output_gate_activation": ["relu", None],
}


@cases(field=list(WRONG_SETTINGS))
def test_wrong_settings_are_refused_by_name(field):
    for value in WRONG_SETTINGS[field]:
        with raises(ValueError, "GatedDeltaNet", field, "must", repr(value)):
            build(**{field: value})


def test_messages_show_the_way_out():
    with raises(ValueError, "num_v_heads must be a multiple of num_heads=2; got 3; use 2, 4, 6"):
        build(num_v_heads=3)
    with raises(ValueError, "expand_v times head_dim=4 must be an integer; got 1.3; use 1.25"):
        build(expand_v=1.3)
    with raises(ValueError, "mode must be one of chunk, fused_recurrent; got 'recurrent'"):
        build(mode="recurrent")
    with raises(ValueError, "output_gate_activation must be one of swish, silu, sigmoid; got 'relu'"):
        build(output_gate_activation="relu")


def test_unknown_keywords_name_the_nearest():
    with raises(TypeError, "GatedDeltaNet", "'expnad_v'", "'expand_v'"):
        build(expnad_v=1)
    with raises(TypeError, "GatedDeltaNet", "'use_short_convs'", "'use_short_conv'"):
        build(use_short_convs=True)
    layer = build()
    with raises(TypeError, "GatedDeltaNet.forward", "'cu_seqlen'", "'cu_seqlens'"):
        layer(torch.zeros(1, 2, 12), cu_seqlen=None)
    with raises(TypeError, "GatedDeltaNet.forward", "'past_key_value'", "'past_key_values'"):
        layer(torch.zeros(1, 2, 12), past_key_value=None)


def test_wrong_inputs_are_refused():
    layer = build()
    with raises(ValueError, "hidden_states must be a tensor", "list"):
        layer([[1.0]])
    for shape in ((2, 12), (1, 2, 3, 12), (2, 3, 11)):
        with raises(ValueError, "hidden_states must have shape [B, T, 12]", str(list(shape))):
            layer(torch.zeros(shape))
    with raises(ValueError, "hidden_states must be floating point", "int64", "embed"):
        layer(torch.zeros(1, 2, 12, dtype=torch.int64))
    with raises(ValueError, "hidden_states must be torch.float32", "torch.float64", "x.to("):
        layer(torch.zeros(1, 2, 12, dtype=torch.float64))
    with raises(ValueError, "hidden_states must be on cpu", "meta"):
        layer(torch.zeros(1, 2, 12, device="meta"))


def test_wrong_masks_are_refused():
    layer, x = build(), torch.zeros(2, 4, 12)
    for mask in (torch.ones(4), torch.ones(2, 4, 4), [[1] * 4] * 2):
        with raises(ValueError, "GatedDeltaNet: attention_mask must have shape [B, T]"):
            layer(x, attention_mask=mask)
    for shape in ((3, 4), (2, 3)):
        with raises(ValueError, "attention_mask must have shape [2, 4] or more columns", str(list(shape))):
            layer(x, attention_mask=torch.ones(shape))
    additive = torch.zeros(2, 4)
    additive[0, 0] = -1e9
    with raises(ValueError, "attention_mask must hold 0 and 1 only", "additive"):
        layer(x, attention_mask=additive)


def test_wrong_offsets_are_refused():
    layer, x = build(), torch.zeros(1, 4, 12)
    wrong = {
        "must be a tensor": [0, 4], "must be int32 or int64": torch.tensor([0.0, 4.0]),
        "must have shape [N+1]": torch.zeros(1, 2, dtype=torch.int64), "must start at 0": torch.tensor([1, 4]),
        "must not decrease": torch.tensor([0, 3, 2, 4]), "must end at the number of tokens, 4": torch.tensor([0, 3]),
    }
    for rule, cu in wrong.items():
        with raises(ValueError, "GatedDeltaNet: cu_seqlens", rule):
            layer(x, cu_seqlens=cu)
    with raises(ValueError, "cu_seqlens", "[1, total, ...]", "batch size 2"):
        layer(torch.zeros(2, 4, 12), cu_seqlens=torch.tensor([0, 4]))


def test_a_cache_needs_a_layer_number():
    layer = build(layer_idx=None)

    class Slots(list):
        def update(self, **kwargs):
            return kwargs

    for cache in (Cache(), Slots([{}])):
        with raises(ValueError, "GatedDeltaNet", "requires `layer_idx`"):
            layer(torch.zeros(1, 2, 12), past_key_values=cache)
    assert layer(torch.zeros(1, 2, 12))[2] is None


def test_foreign_caches_are_refused_by_field():
    layer, x = build().eval(), torch.zeros(2, 1, 12)

    def refused(cache, *parts, module=layer, kind=CacheError):
        with raises(kind, "GatedDeltaNet", *parts):
            module(x, past_key_values=cache, use_cache=True)

    refused((), "past_key_values must be a Cache", "tuple", "from_legacy_cache")
    refused(filled(layer, batch=3), "recurrent_state batch must be 2", "3", "another layer, model or batch")
    refused(filled(build(num_heads=4)), "recurrent_state value heads must be 2", "4")
    refused(filled(build(head_dim=6)), "recurrent_state key size must be 4", "6")
    refused(filled(build(expand_v=1)), "recurrent_state value size must be 8", "4")
    refused(filled(build(conv_size=3)), "conv_state of q taps must be 4", "3")
    refused(filled(build(use_short_conv=False)), "conv_state", "layer 0", "None", "other settings")
    refused(filled(layer), "conv_state must be None", "3 states", module=build(use_short_conv=False))
    wide = filled(layer).to(torch.float64)
    refused(wide, "recurrent_state dtype must be torch.float32", "torch.float64", "cache.to(")
    refused(filled(layer).to("meta"), "recurrent_state device must be cpu", "meta", "cache.to(")
    turned = Cache.from_legacy_cache(filled(layer).to_fla(), seen_tokens=3)
    refused(turned, "recurrent_state layout must be [2, 2, 4, 8]", "[2, 2, 8, 4]", "Cache.from_fla")
    for conv, parts in (((torch.zeros(2, 8, 4),), ("q, k and v", "1 states")),
                        (torch.zeros(2, 8, 4), ("q, k and v", "Tensor")),
                        ((None, None, None), ("conv_state of q must be a tensor [2, 8, 4]", "NoneType"))):
        cache = filled(layer)
        cache[0]["conv_state"] = conv
        refused(cache, *parts)
    cache = filled(layer)
    cache[0]["recurrent_state"] = None
    refused(cache, "recurrent_state", "layer 0")


def test_a_refused_call_leaves_the_cache_alone():
    layer, cache = build().eval(), filled(build())
    state = cache[0]
    with raises(CacheError, "batch"):
        layer(torch.zeros(3, 1, 12), past_key_values=cache, use_cache=True)
    assert cache[0] is state and cache.get_seq_length() == 3


if __name__ == "__main__":
    run_as_script(globals())

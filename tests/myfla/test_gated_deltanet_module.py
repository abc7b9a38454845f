"""GatedDeltaNet as a PyTorch module: parameters, devices and dtypes, and what it says to wrong arguments.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/test_gated_deltanet_module.py``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(ROOT / "libs"))

import copy  # noqa: E402
import inspect  # noqa: E402
import math  # noqa: E402
import pickle  # noqa: E402
import subprocess  # noqa: E402
import warnings  # noqa: E402

import torch  # noqa: E402

from myfla.layers.gated_deltanet import GatedDeltaNet  # noqa: E402
from myfla.models.legacy_cache import LegacyFLACache  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import assert_close, cases, raises, run_as_script  # noqa: E402
from myfla.utils.errors import CacheError  # noqa: E402

SMALL = dict(hidden_size=12, head_dim=4, num_heads=2, layer_idx=0)
FLAGS = {
    "plain": {},
    "no_gate": {"use_gate": False},
    "no_conv": {"use_short_conv": False},
    "bias": {"conv_bias": True, "conv_size": 3},
    "grouped": {"num_v_heads": 4, "expand_v": 1.5},
}


def build(**flags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GatedDeltaNet(**{**SMALL, **flags})


def filled(layer, batch=2, tokens=3, dtype=torch.float32):
    cache = Cache()
    with torch.no_grad():
        layer.eval()(torch.randn(batch, tokens, 12, dtype=dtype), past_key_values=cache, use_cache=True)
    return cache


def test_the_signature_is_the_official_one():
    arguments = inspect.signature(GatedDeltaNet.__init__).parameters
    want = dict(hidden_size=2048, expand_v=2, head_dim=256, num_heads=6, num_v_heads=None, mode="chunk", use_gate=True,
                use_short_conv=True, allow_neg_eigval=False, conv_size=4, conv_bias=False, layer_idx=None,
                norm_eps=1e-5, output_gate_activation="swish")
    names = [name for name in arguments if name != "self"]
    assert names[: len(want)] == list(want) and {name: arguments[name].default for name in want} == want
    forward = list(inspect.signature(GatedDeltaNet.forward).parameters)[1:6]
    assert forward == ["hidden_states", "attention_mask", "past_key_values", "use_cache", "output_attentions"]


@cases(flags=list(FLAGS))
def test_parameters_have_the_official_names_order_and_shapes(flags):
    layer = build(**FLAGS[flags])
    heads, key, value = layer.num_v_heads, layer.key_dim, layer.value_dim
    want = {"A_log": (heads,), "dt_bias": (heads,), "q_proj.weight": (key, 12), "k_proj.weight": (key, 12),
            "v_proj.weight": (value, 12), "a_proj.weight": (heads, 12), "b_proj.weight": (heads, 12)}
    if layer.use_short_conv:
        for part, size in (("q", key), ("k", key), ("v", value)):
            want[f"{part}_conv1d.weight"] = (size, 1, layer.conv_size)
            if layer.conv_bias:
                want[f"{part}_conv1d.bias"] = (size,)
    if layer.use_gate:
        want["g_proj.weight"] = (value, 12)
    want.update({"o_norm.weight": (layer.head_v_dim,), "o_proj.weight": (12, value)})
    state = layer.state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == want and list(state) == list(want)
    other = build(**FLAGS[flags])
    other.load_state_dict(state, strict=True)
    x = torch.randn(1, 5, 12)
    assert torch.equal(layer(x)[0], other(x)[0])


def test_default_sizes_follow_from_the_arguments():
    layer = GatedDeltaNet(hidden_size=16, head_dim=8, num_heads=2, num_v_heads=4, expand_v=1.5, device="meta")
    assert (layer.head_k_dim, layer.head_v_dim, layer.key_dim, layer.value_dim) == (8, 12, 16, 48)
    assert layer.num_v_heads == 4 and layer.layer_idx is None and layer.mode == "chunk"
    # 100 * 0.29 is 28.999999999999996 in binary
    assert GatedDeltaNet(hidden_size=16, head_dim=100, num_heads=1, expand_v=0.29, device="meta").head_v_dim == 29


def test_initial_values_follow_the_official_laws():
    layer = build(num_heads=500, hidden_size=12, head_dim=2)
    A = layer.A_log.detach().exp()
    assert 0 < A.min() and A.max() <= 16 and abs(float(A.mean()) - 8) < 1
    step = torch.nn.functional.softplus(layer.dt_bias.detach())
    assert 0.00099 < step.min() and step.max() < 0.101
    assert abs(float(step.log().mean()) - math.log(0.01)) < 0.2
    assert layer.A_log._no_weight_decay and layer.dt_bias._no_weight_decay
    assert torch.equal(layer.o_norm.weight, torch.ones(4))
    bound = 1 / math.sqrt(12)
    assert 0.9 * bound < layer.q_proj.weight.abs().max() <= bound
    assert 0.9 * 0.5 < layer.q_conv1d.weight.abs().max() <= 0.5


@cases(flags=list(FLAGS))
def test_reset_parameters_draws_what_construction_draws(flags):
    torch.manual_seed(3)
    layer = build(**FLAGS[flags])
    torch.manual_seed(3)
    empty = build(device="meta", **FLAGS[flags])
    assert all(p.device.type == "meta" for p in empty.parameters())
    empty = empty.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(3)
    empty.reset_parameters()
    for (name, a), (_, b) in zip(layer.named_parameters(), empty.named_parameters()):
        assert torch.equal(a, b), name
    assert empty.A_log._no_weight_decay and empty.dt_bias._no_weight_decay


@cases(flags=list(FLAGS), dtype=[torch.float64, torch.bfloat16, torch.float16, None])
def test_dtype_reaches_every_parameter(flags, dtype):
    layer = build(dtype=dtype, **FLAGS[flags])
    plain = dtype or torch.float32
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, parameter in layer.named_parameters():
        keeps_wide = name == "A_log" or (name == "o_norm.weight" and not layer.use_gate)
        assert parameter.dtype == (wide if keeps_wide else plain), name
    y = layer(torch.randn(2, 5, 12, dtype=torch.float64).to(plain))[0]
    assert y.dtype == plain and torch.isfinite(y).all()


def test_the_default_dtype_is_obeyed():
    torch.set_default_dtype(torch.float64)
    try:
        layer = build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}


@cases(flags=list(FLAGS))
def test_float64_computes_in_float64(flags):
    layer = build(**FLAGS[flags]).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    single, double = copy.deepcopy(layer).float()(x.float())[0], layer(x)[0]
    error = float((single - double).detach().abs().max())
    assert 0 < error < 1e-5 and filled(layer, dtype=torch.float64)[0]["recurrent_state"].dtype == torch.float64


def test_copies_and_pickles_behave_the_same():
    layer = build(num_v_heads=4)
    x = torch.randn(1, 4, 12)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x)[0], layer(x)[0])


def test_a_projection_may_be_replaced_by_any_module():
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    layer, x = build(), torch.randn(1, 4, 12)
    want = layer(x)[0]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        setattr(layer, name, Wrapped(getattr(layer, name)))
    assert torch.equal(layer(x)[0], want)


def test_repr_shows_the_settings():
    text = repr(build(num_v_heads=4, allow_neg_eigval=True))
    for part in ("hidden_size=12", "num_v_heads=4", "allow_neg_eigval=True", "mode='chunk'", "layer_idx=0"):
        assert part in text


def test_no_convolution_is_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GatedDeltaNet(use_short_conv=False, **SMALL)
    assert any("use_short_conv=False" in str(w.message) for w in caught)


def test_official_names_without_effect_are_accepted():
    layer = build(fuse_norm=True, chunk_size=32)
    y = layer(torch.zeros(1, 2, 12), output_attentions=True, cache_position=torch.arange(2), position_ids=None)[0]
    assert y.shape == (1, 2, 12)


def test_importing_the_layer_compiles_nothing():
    code = "import torch; torch.compile = None\nimport myfla.layers.gated_deltanet as m\nm.elu_p1(torch.ones(2))"
    path = str(ROOT / "libs")
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"], check=True)


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


def test_other_caches_of_the_protocol_work():
    layer, x = build().eval(), torch.randn(2, 6, 12)
    old, new = LegacyFLACache(), Cache()
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
    with torch.no_grad():
        for cache in (old, new):
            layer(x[:, :4], mask[:, :4], cache, True)
        a, b = (layer(x[:, 4:], mask, cache, True)[0] for cache in (old, new))
    assert torch.equal(a, b) and old.get_seq_length() == new.get_seq_length() == 6
    assert_close(old[0]["recurrent_state"], new[0]["recurrent_state"], rms=1e-12)
    new.reset()
    with torch.no_grad():
        assert_close(layer(x, mask, new, True)[0], layer(x, mask)[0], rms=1e-12)


if __name__ == "__main__":
    run_as_script(globals())

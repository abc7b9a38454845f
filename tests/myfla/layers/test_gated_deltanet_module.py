"""GatedDeltaNet as a PyTorch module: parameters, devices, dtypes, copies, other caches.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/layers/test_gated_deltanet_module.py``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
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
from myfla.testing import assert_close, cases, run_as_script  # noqa: E402
from myfla.utils.native import missing_native  # noqa: E402

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
    assert A.min() > 0 and A.max() <= 16 and abs(float(A.mean()) - 8) < 1
    step = torch.nn.functional.softplus(layer.dt_bias.detach())
    assert step.min() > 0.00099 and step.max() < 0.101
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


@cases(backend=["auto", "torch"], recorded=[False, True])
def test_a_projection_may_be_replaced_by_any_module(backend, recorded):
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    layer, x = build(backend=backend), torch.randn(1, 4, 12)
    with torch.set_grad_enabled(recorded):
        want, truth = layer(x)[0], copy.deepcopy(layer).double()(x.double())[0]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer, name, Wrapped(getattr(layer, name)))
        got = layer(x)[0]
    assert_close(got, truth, rms=1e-6)
    jointly = recorded and backend == "auto" and missing_native() is None  # projections as built are one product
    assert jointly or torch.equal(got, want)


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

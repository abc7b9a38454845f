"""The RWKV-7 layer as a module: arguments, parameters, initialisation, number formats, messages."""

import math
import warnings

import torch

from abilities import skip_without_products
from myfla.layers.lora import LoRA
from myfla.layers.rwkv6 import LoRA as OfficialPath
from myfla.layers.rwkv7 import RWKV7Attention
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CacheError
from rwkv7_layers import build, inputs

SHAPES = {
    "x_r": (1, 1, 64), "x_w": (1, 1, 64), "x_k": (1, 1, 64), "x_v": (1, 1, 64), "x_a": (1, 1, 64), "x_g": (1, 1, 64),
    "k_k": (64,), "k_a": (64,), "r_k": (2, 32), "r_proj.weight": (64, 64), "k_proj.weight": (64, 64),
    "v_proj.weight": (96, 64), "o_proj.weight": (64, 96), "w_lora.lora.0.weight": (32, 64),
    "w_lora.lora.2.weight": (64, 32), "w_lora.lora.2.bias": (64,), "v_lora.lora.0.weight": (32, 64),
    "v_lora.lora.2.weight": (96, 32), "v_lora.lora.2.bias": (96,), "a_lora.lora.0.weight": (32, 64),
    "a_lora.lora.2.weight": (64, 32), "a_lora.lora.2.bias": (64,), "g_lora.lora.0.weight": (32, 64),
    "g_lora.lora.2.weight": (96, 32), "g_norm.weight": (96,), "g_norm.bias": (96,),
}  # fmt: skip


@cases(layer_idx=[0, 1, None], fuse_norm=[False, True])
def test_parameters_have_the_official_names_and_shapes(layer_idx, fuse_norm):
    layer = RWKV7Attention(hidden_size=64, head_dim=32, value_dim=96, layer_idx=layer_idx, fuse_norm=fuse_norm)
    want = {name: shape for name, shape in SHAPES.items() if layer_idx != 0 or not name.startswith("v_lora")}
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == want
    assert list(dict(layer.named_parameters())) == list(layer.state_dict())


@cases(index=[0, 2, 3], depth=[4])
def test_parameters_begin_by_the_official_law(index, depth):
    layer = RWKV7Attention(hidden_size=64, head_dim=16, layer_idx=index, num_hidden_layers=depth)
    rising, falling = index / (depth - 1), 1 - index / depth
    layer.requires_grad_(False)
    for n in (0, 1, 17, 63):
        linear, z = n / 63 - 0.5, ((n % 16) - 7.5) / 7.5
        zigzag = z * abs(z)
        for name, power in (("x_r", 0.2), ("x_w", 0.9), ("x_k", 0.7), ("x_v", 0.7), ("x_a", 0.9), ("x_g", 0.2)):
            assert math.isclose(getattr(layer, name)[0, 0, n], 1 - (n / 64) ** (power * falling), abs_tol=1e-6)
        decay = -6 + 6 * (n / 63) ** (1 + rising**0.3)
        biases = {"w": decay + 0.5 + 2.5 * zigzag, "a": -0.19 + 0.3 * zigzag + 0.4 * linear, "v": 0.73 - 0.4 * linear}
        for name, want in biases.items():
            if hasattr(layer, f"{name}_lora"):
                assert math.isclose(getattr(layer, f"{name}_lora").lora[2].bias[n], want, abs_tol=1e-5)
        assert math.isclose(layer.k_k[n], 0.71 - 0.1 * linear, abs_tol=1e-6)
    assert (layer.k_a == 1.02).all() and (layer.r_k == -0.04).all() and not layer.o_proj.weight.any()
    assert torch.allclose(layer.g_norm.weight, torch.tensor(((index + 1) / depth) ** 0.7))
    assert not layer.g_norm.bias.any()
    eye = torch.eye(64)
    for name, gain in (("r_proj", 1.0), ("k_proj", 0.1), ("v_proj", 1.0)):
        weight = getattr(layer, name).weight
        assert torch.allclose(weight @ weight.t(), gain**2 * eye, atol=1e-5)
    for name in ("w_lora", "a_lora", "g_lora"):
        lora = getattr(layer, name).lora
        assert not lora[0].weight.any()
        assert torch.allclose(lora[2].weight.t() @ lora[2].weight, 0.01 * torch.eye(32), atol=1e-6)
    wide = LoRA(8, 4, 16)
    assert torch.allclose(wide.lora[2].weight @ wide.lora[2].weight.t(), 0.04 * torch.eye(4), atol=1e-6)


@cases(hidden=[64, 256, 1024], head=[32, 64, 128])
def test_bottlenecks_have_the_official_sizes(hidden, head):
    if hidden % head:
        return
    layer = RWKV7Attention(hidden_size=hidden, head_dim=head, layer_idx=1, device="meta")
    rank = lambda x: max(32, int(round(x / 32) * 32))  # noqa: E731
    root, factor = hidden**0.5, head / 64
    assert layer.decay_low_rank_dim == layer.a_low_rank_dim == rank(2.5 * root * factor)
    assert layer.gate_low_rank_dim == rank(5 * root) and layer.v_low_rank_dim == rank(1.7 * root * factor)
    assert layer.w_lora.lora[0].weight.shape == (layer.decay_low_rank_dim, hidden)


def test_what_fails_officially_works():
    """A single layer, no depth, no affine norm, other value sizes, no layer number; and no warning."""
    settings = (
        dict(layer_idx=0, num_hidden_layers=1), dict(layer_idx=0), dict(layer_idx=3), {},
        dict(layer_idx=0, elementwise_affine=False), dict(layer_idx=0, value_dim=48), dict(layer_idx=1, value_dim=8),
        dict(layer_idx=0, head_dim=None, num_heads=2), dict(layer_idx=0, head_dim=1), dict(head_dim=16),
    )  # fmt: skip
    for more in settings:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer = RWKV7Attention(**{"hidden_size": 16, "head_dim": 4, **more})
        assert all(torch.isfinite(p).all() for p in layer.parameters())
        first = torch.randn(2, 5, layer.value_dim) if layer.layer_idx else None
        y, _, _, first = layer(torch.randn(2, 5, 16), v_first=first)
        assert y.shape == (2, 5, 16) and first.shape == (2, 5, layer.value_dim)
    assert RWKV7Attention("fused_recurrent", 16, 4).mode == "fused_recurrent"  # mode comes first, as officially
    assert RWKV7Attention(hidden_size=32, head_dim=8, num_heads=3).num_heads == 4  # head_dim wins, as officially


def test_a_layer_without_a_number_stands_alone():
    layer = build(None)
    x, _ = inputs(layer)
    y, _, _, v_first = layer(x)
    assert layer(x, v_first=v_first)[3] is v_first
    assert_close(layer(x, v_first=v_first)[0], y, rms=1e-12)
    assert not torch.allclose(layer(x, v_first=v_first + 1)[0], y)


@cases(dtype=[torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_device_reach_every_parameter(dtype):
    layer = RWKV7Attention(hidden_size=16, head_dim=4, layer_idx=1, num_hidden_layers=2, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    meta = RWKV7Attention(hidden_size=16, head_dim=4, layer_idx=1, num_hidden_layers=2, device="meta", fuse_norm=True)
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_a_meta_layer_comes_to_life():
    torch.manual_seed(0)
    want = RWKV7Attention(hidden_size=16, head_dim=4, layer_idx=1, num_hidden_layers=3)
    layer = RWKV7Attention(hidden_size=16, head_dim=4, layer_idx=1, num_hidden_layers=3, device="meta")
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(0)
    want.reset_parameters()
    torch.manual_seed(0)
    layer.reset_parameters()
    for (name, got), expected in zip(layer.named_parameters(), want.parameters()):
        assert torch.equal(got, expected), name


@cases(layer_idx=[0, 1], fuse_norm=[False, True])
def test_state_dict_round_trip(layer_idx, fuse_norm):
    layer, other = build(layer_idx, fuse_norm=fuse_norm), build(layer_idx, fuse_norm=fuse_norm, seed=1)
    x, first = inputs(layer)
    want = layer(x, v_first=first)[0]
    assert not torch.equal(other(x, v_first=first)[0], want)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(other(x, v_first=first)[0], want)
    swapped = build(layer_idx, fuse_norm=not fuse_norm)
    swapped.load_state_dict(layer.state_dict(), strict=True)  # the same names in both norms


@cases(dtype=[torch.bfloat16, torch.float16], layer_idx=[0, 1])
def test_half_precision_layers_follow_float64(dtype, layer_idx):
    layer = build(layer_idx, dtype=dtype)
    skip_without_products(dtype)
    exact = build(layer_idx)
    exact.load_state_dict({name: p.double() for name, p in layer.state_dict().items()})
    x, first = inputs(layer, tokens=40)
    cache = Cache()
    y, _, _, v_first = layer(x, v_first=first, past_key_values=cache, use_cache=True)
    want = exact(x.double(), v_first=None if first is None else first.double())[0]
    assert y.dtype == v_first.dtype == dtype and cache[layer_idx]["recurrent_state"].dtype == torch.float32
    assert cache[layer_idx]["conv_state"].dtype == dtype
    assert_close(y, want, rms=3e-2 if dtype == torch.bfloat16 else 4e-3)
    y.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_every_parameter_learns():
    layer = build(1, dtype=torch.float32)
    x, first = inputs(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        layer(x, v_first=first)[0].square().mean().backward()
        optimizer.step()
    for name, p in layer.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_autocast_runs_projections_in_half_precision_only():
    layer = build(1, dtype=torch.float32)
    x, first = inputs(layer)
    cache = Cache()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, v_first=first, past_key_values=cache, use_cache=True)[0]
    assert y.dtype == torch.bfloat16 and cache[1]["recurrent_state"].dtype == torch.float32
    assert_close(y, layer(x, v_first=first)[0], rms=3e-2)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in layer.parameters())


def test_two_sessions_do_not_meet():
    layer = build(0)
    (a, _), (b, _) = inputs(layer, seed=1), inputs(layer, seed=2)

    def session(x, cache, i, j):
        return layer(x[:, i:j], past_key_values=cache, use_cache=True)[0]

    alone = []
    for x in (a, b):
        cache = Cache()
        alone.append([session(x, cache, 0, 5), session(x, cache, 5, 13)])
    caches = Cache(), Cache()
    mixed = [session(a, caches[0], 0, 5), session(b, caches[1], 0, 5)]
    fork = caches[0].fork()
    mixed += [session(a, caches[0], 5, 13), session(b, caches[1], 5, 13)]
    for got, want in zip(mixed, (alone[0][0], alone[1][0], alone[0][1], alone[1][1])):
        assert torch.equal(got, want)
    assert torch.equal(session(a, fork, 5, 13), alone[0][1])  # what was kept is as it was


def test_wrong_settings_are_refused_by_name():
    make = lambda **more: RWKV7Attention(**{"hidden_size": 16, "head_dim": 4, **more})  # noqa: E731
    with raises(TypeError, "RWKV7Attention: unknown keyword 'head_dm'", "did you mean 'head_dim'?"):
        make(head_dm=4)
    wrong = (
        (dict(mode="scan"), "mode must be one of chunk, fused_recurrent; got 'scan'"),
        (dict(hidden_size=0), "hidden_size must be a positive integer; got 0"),
        (dict(head_dim=5), "head_dim must divide hidden_size=16; got 5"),
        (dict(head_dim=None, num_heads=3), "num_heads must divide hidden_size=16; got 3"),
        (dict(head_dim=None), "head_dim must be given if num_heads is not"),
        (dict(value_dim=18), "value_dim must be a multiple of the number of heads, 4; got 18"),
        (dict(layer_idx=-1), "layer_idx must be an integer from 0, or None; got -1"),
        (dict(layer_idx=2, num_hidden_layers=2), "num_hidden_layers must be an integer from 3 for layer_idx=2; got 2"),
        (dict(num_hidden_layers=0), "num_hidden_layers must be an integer from 1; got 0"),
        (dict(norm_eps=float("nan")), "norm_eps must be a finite number from 0; got nan"),
        (dict(decay_low_rank_dim=0), "decay_low_rank_dim must be a positive integer; got 0"),
    )
    for more, text in wrong:
        with raises(ValueError, "RWKV7Attention", text):
            make(**more)
    with raises(ValueError, "LoRA: activation must be None, 'sigmoid', 'tanh' or 'relu'; got 'gelu'"):
        LoRA(4, 4, 2, activation="gelu")
    with raises(ValueError, "LoRA: low_rank_dim must be at least 1; got 0"):
        LoRA(4, 4, 0)


def test_wrong_inputs_are_refused_by_name():
    layer = build(1)
    x, first = inputs(layer)
    who = "RWKV7Attention"
    with raises(ValueError, who, "v_first is required in layer 1", "fourth result of layer 0"):
        layer(x)
    with raises(ValueError, who, "v_first must have shape [B, T, value_dim] = (2, 13, 24)", "(2, 12, 24)"):
        layer(x, v_first=first[:, 1:])
    with raises(ValueError, who, "hidden_states must have shape [B, T, 24]"):
        layer(x[..., 1:], v_first=first)
    with raises(ValueError, who, "hidden_states must be torch.float64", "torch.float32"):
        layer(x.float(), v_first=first)
    with raises(ValueError, who, "attention_mask must have shape [2, 13]"):
        layer(x, attention_mask=torch.ones(2, 12), v_first=first)
    with raises(ValueError, who, "attention_mask must hold 0 and 1 only", "got 2"):
        layer(x, attention_mask=2 * torch.ones(2, 13), v_first=first)
    with raises(ValueError, who, "cu_seqlens", "batch size 2"):
        layer(x, cu_seqlens=torch.tensor([0, 13]), v_first=first)
    with raises(TypeError, "RWKV7Attention.forward: unknown keyword 'attn_mask'", "did you mean 'attention_mask'?"):
        layer(x, attn_mask=None, v_first=first)
    official = layer(x, v_first=first, output_attentions=True, position_ids=None)[0]
    assert torch.equal(official, layer(x, v_first=first)[0])


def test_a_foreign_cache_is_refused_by_name():
    layer, other = build(0), build(0, heads=2)
    x, _ = inputs(layer)
    cache = Cache()
    other(x, past_key_values=cache, use_cache=True)
    with raises(CacheError, "RWKV7Attention: recurrent_state heads must be 3; got 2"):
        layer(x, past_key_values=cache)
    with raises(CacheError, "recurrent_state batch must be 1; got 2"):
        other(x[:1], past_key_values=cache)
    with raises(ValueError, "RWKV7Attention: past_key_values requires `layer_idx`"):
        build(None)(x, past_key_values=Cache(), use_cache=True)
    with raises(CacheError, "past_key_values must be a Cache", "'list'"):
        layer(x, past_key_values=[1])


def test_lora_is_found_at_its_official_place():
    assert OfficialPath is LoRA
    lora = LoRA(4, 6, 2, bias=False)
    lora.set_bias_value(3.0)  # nothing to set
    assert repr(lora) == "LoRA(input_dim=4, low_rank_dim=2, output_dim=6, bias=False)"
    lora = LoRA(4, 6, 2, activation="sigmoid")
    lora.set_bias_value(torch.arange(6.0))
    assert torch.equal(lora(torch.zeros(1, 4))[0] - lora.lora[2].weight.sum(1) / 2, torch.arange(6.0))

"""The strategies over myfla's layers: loading, caches through many layers, switching by config, registration.

    PYTHONPATH=src python3.8 tests/myfla/test_fla_encoder_strategy_integration.py
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(ROOT / "libs"))
try:
    import encoders  # noqa: F401
except ImportError:
    sys.path.insert(0, str(ROOT / "src"))

from cfg.encoder import ENCODER_CONFIGS  # noqa: E402
from cfg.validation import ConfigError  # noqa: E402
from encoders import (  # noqa: E402
    EncoderStrategy,
    UnknownEncoderError,
    available_strategies,
    build_encoder,
    encoder_config,
    get_strategy,
    load_encoder,
    switch_encoder,
)
from encoders.factory import Registry  # noqa: E402
from encoders.strategies.gated_deltanet import GatedDeltaNetEncoderStrategy  # noqa: E402
from encoders.strategies.rwkv7 import RWKV7EncoderStrategy  # noqa: E402
from myfla.layers import GatedDeltaNet  # noqa: E402
from myfla.layers.rwkv7 import RWKV7Attention  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import assert_close, cases, raises, run_as_script  # noqa: E402
from myfla.utils.errors import CacheError  # noqa: E402

NAMES = ["gated_deltanet", "rwkv7"]
STRATEGIES = {"gated_deltanet": GatedDeltaNetEncoderStrategy, "rwkv7": RWKV7EncoderStrategy}
LAYERS = {"gated_deltanet": GatedDeltaNet, "rwkv7": RWKV7Attention}
FLAGS = {
    "gated_deltanet": [
        {},
        dict(use_gate=False),
        dict(use_short_conv=False),
        dict(allow_neg_eigval=True, conv_bias=True, conv_size=2),
        dict(num_heads=1, num_v_heads=3, head_dim=4, expand_v=1.25),
        dict(mode="fused_recurrent", output_gate_activation="sigmoid"),
    ],
    "rwkv7": [
        {},
        dict(head_dim=4),
        dict(fuse_norm=True, mode="fused_recurrent"),
        dict(num_heads=2, value_dim=32, decay_low_rank_dim=3, gate_low_rank_dim=4, a_low_rank_dim=5, v_low_rank_dim=6),
        dict(num_layers=1),
    ],
}


def build(name, dtype=torch.float64, **changes):
    """A small encoder in eval mode with every parameter moved away from its start."""
    torch.manual_seed(0)
    encoder = build_encoder({"name": name, "input_size": 3, "hidden_size": 8, "num_layers": 3, **changes}, dtype=dtype)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return encoder.eval()


def states_of(cache, layer):
    """The tensors that one layer keeps."""
    state = cache[layer]
    conv = state["conv_state"]
    conv = conv if isinstance(conv, (tuple, list)) else (conv,)
    return [t for t in (state["recurrent_state"], *conv, state["ffn_state"]) if t is not None]


@cases(name=NAMES)
def test_a_strategy_loads_by_name_and_builds_layers_of_myfla(name):
    strategy = get_strategy(name)
    assert type(strategy) is STRATEGIES[name] and isinstance(strategy, EncoderStrategy)
    assert strategy.config_class is ENCODER_CONFIGS[name]
    encoder = strategy.build(strategy.config_class(input_size=3, hidden_size=8))
    for i, block in enumerate(encoder.blocks):
        assert type(block.mixer) is LAYERS[name] and type(block.mixer).__module__.startswith("myfla.layers.")
        assert block.mixer.layer_idx == i
    assert not any(module == "fla" or module.startswith("fla.") for module in sys.modules)


def test_the_factory_registers_both_by_import():
    assert Registry(plugins=[]).names()[:2] == NAMES
    states = {row.name: (row.distribution, row.state) for row in available_strategies()}
    assert all(states[name] == ("built-in", "ready") for name in NAMES)
    with raises(UnknownEncoderError, "encoder 'rwkv8' is not known; did you mean 'rwkv7'?", "gated_deltanet"):
        get_strategy("rwkv8")


@cases(setting=[(name, flags) for name in NAMES for flags in FLAGS[name]])
def test_every_set_of_flags_encodes_streams_and_learns(setting):
    name, flags = setting
    encoder = build(name, **flags)
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    whole = encoder(x, use_cache=True)
    first = encoder(x[:, :4], use_cache=True)
    second = encoder(x[:, 4:], cache=first.cache)
    assert whole.hidden.shape == (2, 7, 8) and whole.embedding.shape == (2, 8)
    assert_close(torch.cat([first.hidden, second.hidden], 1), whole.hidden, rms=1e-10)
    encoder.train()
    (encoder(x).embedding * torch.randn(2, 8, dtype=torch.float64)).sum().backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@cases(name=NAMES)
def test_one_cache_goes_through_all_layers(name):
    encoder = build(name)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    out = encoder(x, use_cache=True)
    assert isinstance(out.cache, Cache) and len(out.cache) == 3
    for i in range(3):
        assert out.cache.get_seq_length(i) == 6 and states_of(out.cache, i)[0].shape[0] == 2
    slots = [states_of(out.cache, i)[0] for i in range(3)]
    assert not torch.equal(slots[0], slots[1]) and not torch.equal(slots[1], slots[2])


@cases(name=NAMES, pieces=[[1] * 9, [9], [3, 0, 5, 1], [0, 9], [8, 1]])
def test_pieces_chain_through_the_cache_of_all_layers(name, pieces):
    encoder = build(name)
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    whole = encoder(x, use_cache=True)
    with torch.no_grad():
        cache, parts = None, []
        for piece in x.split(pieces, dim=1):
            out = encoder(piece, cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.hidden)
    assert_close(torch.cat(parts, 1), whole.hidden, rms=1e-10)
    for i in range(3):
        for got, want in zip(states_of(cache, i), states_of(whole.cache, i)):
            assert_close(got, want, rms=1e-10)


@cases(name=NAMES)
def test_the_encoder_is_its_layers_called_directly(name):
    encoder = build(name)
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    want = encoder(x, use_cache=True)
    hidden, cache, v_first = encoder.input(x), Cache(), None
    for block in encoder.blocks:
        if name == "gated_deltanet":
            mixed, _, cache = block.mixer(block.mixer_norm(hidden), past_key_values=cache, use_cache=True)
            hidden = hidden + mixed
            hidden = hidden + block.mlp(block.mlp_norm(hidden))
            continue
        hidden = block.entry_norm(hidden)
        mixed, _, cache, v_first = block.mixer(
            block.mixer_norm(hidden), past_key_values=cache, use_cache=True, v_first=v_first
        )
        hidden = hidden + mixed
        fed, cache = block.mlp(block.mlp_norm(hidden), state=cache)
        hidden = hidden + fed
    assert_close(encoder.norm(hidden), want.hidden, rms=1e-12)
    for i in range(3):
        for got, expected in zip(states_of(cache, i), states_of(want.cache, i)):
            assert_close(got, expected, rms=1e-12)


@cases(name=NAMES, side=["left", "right", "inner", "row"])
def test_pads_change_nothing(name, side):
    masks = {"left": [0, 0, 1, 1, 1], "right": [1, 1, 1, 0, 0], "inner": [1, 0, 1, 0, 1], "row": [0, 0, 0, 0, 0]}
    mask = torch.tensor([[1, 1, 1, 1, 1], masks[side]], dtype=torch.bool)
    encoder = build(name)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    x[~mask] = float("nan")
    out = encoder(x, attention_mask=mask, use_cache=True)
    for row in range(2):
        alone = encoder(x[row, mask[row]][None], use_cache=True)
        assert_close(out.hidden[row, mask[row]], alone.hidden[0], rms=1e-10)
        assert_close(out.embedding[row], alone.embedding[0], rms=1e-10)
        for i in range(3):
            for got, want in zip(states_of(out.cache, i), states_of(alone.cache, i)):
                assert_close(got[row : row + 1], want, rms=1e-10)
    assert not out.hidden[~mask].any() and out.cache.lengths.tolist() == mask.sum(1).tolist()


@cases(name=NAMES, direction=["causal", "bidirectional"])
def test_packed_sequences_do_not_see_each_other(name, direction):
    encoder = build(name, direction=direction)
    rows = [torch.randn(1, n, 3, dtype=torch.float64) for n in (4, 0, 1, 6)]
    out = encoder(torch.cat(rows, 1), cu_seqlens=torch.tensor([0, 4, 4, 5, 11]))
    alone = [encoder(row) for row in rows]
    assert_close(out.hidden, torch.cat([one.hidden for one in alone], 1), rms=1e-10)
    assert_close(out.embedding, torch.cat([one.embedding for one in alone]), rms=1e-10)


@cases(name=NAMES)
def test_config_alone_switches_the_encoder(name):
    other = NAMES[1 - NAMES.index(name)]
    entry = {"name": name, "input_size": 3, "hidden_size": 16, "num_layers": 2, "pooling": "last"}
    here, there = build_encoder(entry), build_encoder({**entry, "name": other})
    assert type(here.blocks[0].mixer) is LAYERS[name] and type(there.blocks[0].mixer) is LAYERS[other]
    x = torch.randn(2, 5, 3)
    assert here(x).embedding.shape == there(x).embedding.shape == (2, 16)
    config = encoder_config(entry)
    assert switch_encoder(config, other) == encoder_config({**entry, "name": other})
    assert switch_encoder(switch_encoder(config, other), name) == config


@cases(name=NAMES)
def test_a_flag_of_the_other_encoder_is_refused_by_name(name):
    other = NAMES[1 - NAMES.index(name)]
    own = {field.name for field in dataclasses.fields(ENCODER_CONFIGS[name])}
    for field in dataclasses.fields(ENCODER_CONFIGS[other]):
        if field.name not in own:
            with raises(ConfigError, f"encoder.{field.name} belongs to ", repr(other), f", not to {name!r}"):
                build_encoder({"name": name, "input_size": 3, field.name: field.default})


@cases(name=NAMES)
def test_a_cache_of_the_other_encoder_is_refused(name):
    other = NAMES[1 - NAMES.index(name)]
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    cache = build(other)(x, use_cache=True).cache
    with raises(CacheError, "encoder: fingerprint must be that of the model"):
        build(name)(x, cache=cache)


@cases(name=NAMES)
def test_an_encoder_is_saved_and_loaded_by_one_call_each(name):
    encoder = build(name, torch.float32)
    x = torch.randn(2, 5, 3)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(folder)
        again = load_encoder(folder)
    assert again.config == encoder.config and torch.equal(again(x).embedding, encoder(x).embedding)


if __name__ == "__main__":
    run_as_script(globals())

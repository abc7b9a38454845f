"""State weaving: a layer begins where the one before ended; held to loops that know nothing of the library."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import layer_truth
import rwkv7_numpy
from cfg.encoder import ENCODER_CONFIGS
from cfg.validation import ConfigError
from encoders import build_encoder, load_encoder, switch_encoder
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, raises
from small_encoders import FAMILY, HEADED, WOVEN, small
from tiny_encoder import TinyConfig, TinyStrategy

TIGHT = 1e-10


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gdn_chain(encoder, x):
    """One sequence through an encoder of GatedDeltaNet blocks, as a token loop."""
    hidden, last = encoder.input(x), 0.0
    for i, block in enumerate(encoder.blocks):
        parameters = {name: p.detach() for name, p in block.mixer.named_parameters()}
        y, last, _ = layer_truth.gated_deltanet(
            block.mixer, parameters, block.mixer_norm(hidden), encoder.weaving.initial[i] + last)
        hidden = hidden + y
        hidden = hidden + block.mlp(block.mlp_norm(hidden))
    return encoder.norm(hidden)


def rwkv7_chain(encoder, x):
    """One sequence through an encoder of RWKV-7 blocks, as NumPy loops."""
    hidden, last, first = encoder.input(x), 0.0, None
    for i, block in enumerate(encoder.blocks):
        hidden = block.entry_norm(hidden)
        parameters = {name: p.detach().numpy() for name, p in block.mixer.named_parameters()}
        begin = (encoder.weaving.initial[i].detach().numpy() + last).swapaxes(1, 2)
        eps = block.mixer.head_dim * block.mixer.norm_eps
        y, values, state, _ = rwkv7_numpy.time_mixing(
            parameters, block.mixer_norm(hidden).numpy(), block.mixer.num_heads, eps, first, begin)
        first, last = values if first is None else first, np.swapaxes(state, 1, 2)
        hidden = hidden + torch.from_numpy(y)
        hidden = hidden + block.mlp(block.mlp_norm(hidden)[None])[0][0]
    return encoder.norm(hidden)


def layer_chain(encoder, x):
    """One sequence through the layers one by one, token by token, each begun by hand."""
    hidden, last = encoder.input(x), 0.0
    for i, block in enumerate(encoder.blocks):
        cache = Cache()
        cache.update(recurrent_state=(encoder.weaving.initial[i] + last)[None], layer_idx=i, offset=0)
        rows = [block.mixer(token[None, None], past_key_values=cache, use_cache=True)[0][0]
                for token in block.mixer_norm(hidden)]
        last = cache[i]["recurrent_state"][0]
        hidden = hidden + torch.cat(rows)
        hidden = hidden + block.mlp(block.mlp_norm(hidden))
    return encoder.norm(hidden)


CHAINS = {"gated_deltanet": gdn_chain, "rwkv7": rwkv7_chain, **dict.fromkeys(FAMILY, layer_chain)}


@cases(name=WOVEN, num_layers=[1, 3], tokens=[1, 9])
def test_each_layer_begins_where_the_one_before_ended(name, num_layers, tokens):
    encoder, x = small(name, state_weaving=True, num_layers=num_layers), data(2, tokens, 3)
    with torch.no_grad():
        got = encoder(x).hidden
        for row in range(2):
            assert_close(got[row], CHAINS[name](encoder, x[row]), rms=TIGHT)


@cases(name=WOVEN)
def test_every_token_sees_the_whole_sequence_from_the_second_layer_on(name):
    x = data(1, 8, 3)
    changed = x.clone()
    changed[:, 7] += 1.0
    for layers, sees in ((1, False), (2, True)):
        encoder = small(name, state_weaving=True, num_layers=layers)
        assert torch.allclose(encoder(x).hidden[:, :7], encoder(changed).hidden[:, :7], rtol=1e-9) != sees


@cases(name=WOVEN, direction=["causal", "bidirectional"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4), junk=st.sampled_from([float("nan"), 1.0]))
def test_packed_equals_padded_equals_one_by_one(name, direction, lengths, junk):
    encoder = small(name, state_weaving=True, direction=direction)
    rows = [data(n, 3, seed=i).requires_grad_() for i, n in enumerate(lengths)]
    packed = encoder(torch.cat(rows)[None], cu_seqlens=torch.tensor([0, *lengths]).cumsum(0))
    padded = encoder(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=junk), lengths=lengths)
    alone = [encoder(row[None]) for row in rows]
    hidden = torch.cat([one.hidden[0] for one in alone])
    assert_close(packed.hidden[0], hidden, rms=TIGHT)
    assert_close(torch.cat([padded.hidden[i, :n] for i, n in enumerate(lengths)]), hidden, rms=TIGHT)
    leaves = [*rows, *encoder.parameters()]
    grads = []
    for result in (packed.hidden[0], torch.cat([padded.hidden[i, :n] for i, n in enumerate(lengths)]), hidden):
        found = torch.autograd.grad((result * data(*result.shape, seed=7)).sum(), leaves, allow_unused=True)
        grads.append([torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)])
    scale = max([1e-30, *(float(g.abs().max()) for g in grads[2] if g.numel())])
    for one in grads[:2]:
        assert all(not a.numel() or float((a - b).abs().max()) <= 1e-9 * scale for a, b in zip(one, grads[2]))


@cases(name=WOVEN, direction=["causal", "bidirectional"], mode=["chunk", "fused_recurrent"])
def test_every_initial_state_learns(name, direction, mode):
    modes = {"mode": mode} if "mode" in ENCODER_CONFIGS[name].__dataclass_fields__ else {}
    encoder = small(name, torch.float32, state_weaving=True, direction=direction, **modes).train()
    encoder(data(2, 70, 3).float(), lengths=[70, 4]).embedding.square().sum().backward()
    found = [p for key, p in encoder.named_parameters() if "weaving" in key]
    assert len(found) == (2 if direction == "bidirectional" else 1)
    for parameter in found:
        assert parameter._no_weight_decay and all(float(layer.abs().max()) > 0 for layer in parameter.grad)


@cases(name=WOVEN)
def test_gradients_equal_finite_differences(name):
    encoder = small(name, state_weaving=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x, lengths=[3, 1]).hidden, data(2, 3, 3).requires_grad_())


@cases(name=WOVEN, dtype=[torch.float32, torch.bfloat16])
def test_half_precision_keeps_the_states_wide(name, dtype):
    sizes = dict(hidden_size=32, num_layers=2, **({"head_dim": 16} if name in HEADED else {}))
    half, wide = (small(name, kind, state_weaving=True, **sizes) for kind in (dtype, torch.float64))
    wide.load_state_dict(half.state_dict())
    x = data(2, 20, 3).to(dtype)
    got, want = half(x).hidden, wide(x.double()).hidden
    assert got.dtype == dtype
    assert_close(got.double(), want, rms=1e-5 if dtype == torch.float32 else 6e-2, largest=0.3)


@cases(name=WOVEN)
def test_it_is_saved_and_comes_back(name, tmp_path):
    encoder, x = small(name, torch.float32, state_weaving=True, direction="bidirectional"), data(2, 5, 3).float()
    again = load_encoder(encoder.save(tmp_path))
    assert again.config.state_weaving and torch.equal(again(x).embedding, encoder(x).embedding)
    plain = small(name)
    assert plain.weaving is None and not [key for key in plain.state_dict() if "weaving" in key]
    assert plain.fingerprint != small(name, state_weaving=True).fingerprint


@cases(name=WOVEN)
def test_it_goes_along_when_the_encoder_is_switched(name):
    other = next(n for n in WOVEN if n != name)
    config = switch_encoder(small(name, state_weaving=True).config, other)
    assert config.state_weaving and build_encoder(config).weaving is not None


@cases(name=WOVEN)
def test_a_cache_is_refused_with_the_reason(name):
    encoder, x = small(name, state_weaving=True), data(1, 2, 3)
    cache = small(name)(x, use_cache=True).cache
    for wish in (dict(use_cache=True), dict(cache=cache)):
        with raises(ValueError, "encoder: cache cannot be used with state_weaving=True",
                    "a layer begins where the one before it ended, at the end of the sequence; build it without"):
            encoder(x, **wish)
    assert encoder(x, use_cache=False).cache is None


def test_a_stream_is_refused_with_the_reason(tmp_path):
    from app.errors import RunError
    from app.streaming.model import load_model

    small("rwkv7", torch.float32, state_weaving=True).save(tmp_path)
    with pytest.raises(RunError, match=r"be fed in pieces; got encoder.state_weaving=true: it has to know the"):
        load_model(tmp_path, "embedding")


def test_strategies_whose_states_do_not_fit_are_refused():
    config = TinyConfig(input_size=3, state_weaving=True)
    with raises(ValueError, "build_encoder: encoder.state_weaving must be false for encoder 'tiny'",
                "its strategy names no state for layer 0 (EncoderStrategy.state_shape)"):
        TinyStrategy().build(config)

    class Uneven(TinyStrategy):
        def state_shape(self, config, layer_idx):
            return (1, 1, 6 + layer_idx)

    with raises(ValueError, "build_encoder: encoder.state_weaving needs states of one shape in all layers",
                "layer 0 has (1, 1, 6), layer 1 has (1, 1, 7)"):
        Uneven().build(config)


def test_a_plugin_that_names_its_state_can_weave():
    class Even(TinyStrategy):
        def state_shape(self, config, layer_idx):
            return (1, 1, config.hidden_size)

    torch.manual_seed(0)
    encoder = Even().build(TinyConfig(input_size=3, state_weaving=True), dtype=torch.float64)
    with torch.no_grad():
        encoder.weaving.initial.fill_(0.0)
        one, x = Even().build(TinyConfig(input_size=3, num_layers=1), dtype=torch.float64), data(1, 4, 3)
        one.load_state_dict({key: t for key, t in encoder.state_dict().items()
                             if not key.startswith(("weaving", "blocks.1"))})
        before = encoder(x).hidden
        encoder.weaving.initial[1].fill_(5.0)
        assert not torch.allclose(encoder(x).hidden, before) and one(x).hidden.shape == before.shape


@cases(value=["yes", 1, None])
def test_another_value_than_a_flag_is_refused(value):
    with raises(ConfigError, f"encoder.state_weaving must be true or false; got {value!r}"):
        TinyConfig(state_weaving=value)

"""The stack around a mixer that can be checked by hand: residuals, directions, carries, caches, and what is refused."""

import torch

from cfg.encoder import GatedDeltaNetEncoderConfig
from cfg.validation import ConfigError
from encoders import EncoderOutput, build_encoder
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CacheError
from tiny_encoder import TinyConfig, TinyStrategy


def tiny(dtype=torch.float64, **changes):
    values = {"input_size": None if "vocab_size" in changes else 3, **changes}
    return TinyStrategy().build(TinyConfig(**values), dtype=dtype).eval()


def block_by_hand(block, h):
    """One residual block on one sequence ``[T, D]``."""
    h = h + block.mixer.scale * block.mixer_norm(h).cumsum(0)
    return h + block.mlp(block.mlp_norm(h))


def encoder_by_hand(encoder, x):
    """The hidden states of one sequence ``[T, input_size]``, as the class says."""
    h = encoder.input(x)
    for i, block in enumerate(encoder.blocks):
        ahead = block_by_hand(block, h)
        if encoder.config.direction == "bidirectional":
            behind = block_by_hand(encoder.backward_blocks[i], h.flip(0)).flip(0)
            ahead = (ahead + behind) / 2
        h = ahead
    return encoder.norm(h)


@cases(direction=["causal", "bidirectional"], lengths=[[4, 4], [4, 1], [0, 3], [0, 0]])
def test_the_stack_is_its_definition_row_by_row(direction, lengths):
    encoder, x = tiny(direction=direction), torch.randn(2, 4, 3, dtype=torch.float64)
    out = encoder(x, lengths=lengths)
    assert isinstance(out, EncoderOutput) and out.cache is None
    for row, n, hidden, embedding in zip(x, lengths, *out[:2]):
        want = encoder_by_hand(encoder, row[:n])
        assert_close(hidden[:n], want, rms=1e-12)
        assert not hidden[n:].any()
        assert_close(embedding, want.mean(0) if n else torch.zeros(6, dtype=torch.float64), rms=1e-12)


def test_token_ids_are_embedded():
    encoder = tiny(vocab_size=10)
    ids = torch.tensor([[1, 2, 9], [0, -100, 77]])  # what stands in a pad need not be a token
    out = encoder(ids, lengths=[3, 1])
    assert_close(out.hidden[1, :1], encoder_by_hand(encoder, ids[1, :1]), rms=1e-12)
    assert torch.equal(encoder(ids.int(), lengths=[3, 1]).hidden, out.hidden)


def test_token_vectors_start_as_large_as_asked():
    torch.manual_seed(0)
    usual = tiny(vocab_size=500, hidden_size=16).input.weight
    small = tiny(vocab_size=500, hidden_size=16, embedding_std=0.02).input.weight
    assert 0.98 < float(usual.detach().std()) < 1.02 and 0.0196 < float(small.detach().std()) < 0.0204


def test_a_carry_goes_down_the_stack_and_starts_afresh_in_each_direction_and_call():
    encoder, x = tiny(direction="bidirectional", num_layers=3), torch.randn(1, 4, 3, dtype=torch.float64)
    for _ in range(2):
        encoder(x)
    for blocks in (encoder.blocks, encoder.backward_blocks):
        first, second, third = (block.mixer.carries for block in blocks)
        assert first == [None, None] and len(second) == len(third) == 2
        assert all(a is b and a is not None for a, b in zip(second, third))
        assert second[0] is not second[1]
    ahead, behind = encoder.blocks[1].mixer.carries[0], encoder.backward_blocks[1].mixer.carries[0]
    assert not torch.equal(ahead, behind)


def test_dropout_works_on_both_branches_in_training_only():
    encoder, x = tiny(dropout=0.5, num_layers=1), torch.randn(2, 5, 3, dtype=torch.float64)
    assert torch.equal(encoder(x).hidden, encoder(x).hidden)
    encoder.train()
    assert not torch.equal(encoder(x).hidden, encoder(x).hidden)
    block = encoder.blocks[0]
    h = encoder.input(x)
    torch.manual_seed(3)
    got, _ = block(h, *_call())
    torch.manual_seed(3)
    mid = h + block.dropout(block.mixer.scale * block.mixer_norm(h).cumsum(1))
    assert_close(got, mid + block.dropout(block.mlp(block.mlp_norm(mid))), rms=1e-12)


def _call():
    from encoders import StackCall

    return StackCall(), None


@cases(lengths=[[5] * 200, [5, 0, 3, 1] * 50])
def test_drop_path_leaves_the_mixer_out_for_whole_sequences_in_training_only(lengths):
    plain, encoder = tiny(num_layers=1), tiny(num_layers=1, drop_path=0.75)
    encoder.load_state_dict(plain.state_dict())
    x = torch.randn(len(lengths), 5, 3, dtype=torch.float64)
    want = plain(x, lengths=lengths).hidden
    assert torch.equal(encoder(x, lengths=lengths).hidden, want)
    plain.blocks[0].mixer.scale = 0.0
    skipped = plain(x, lengths=lengths).hidden
    plain.blocks[0].mixer.scale = 2.0  # what is kept counts four times
    kept = plain(x, lengths=lengths).hidden
    got = encoder.train()(x, lengths=lengths).hidden
    rows = [i for i, n in enumerate(lengths) if n]
    left_out = [torch.allclose(got[i], skipped[i], rtol=1e-12, atol=1e-12) for i in rows]
    assert all(out or torch.allclose(got[i], kept[i], rtol=1e-12, atol=1e-12) for i, out in zip(rows, left_out))
    assert 0.65 < sum(left_out) / len(rows) < 0.85


def test_a_cache_is_read_and_left_as_it_was():
    encoder, x = tiny(), torch.randn(2, 6, 3, dtype=torch.float64)
    whole = encoder(x)
    first = encoder(x[:, :4], use_cache=True)
    before = [state["recurrent_state"].clone() for state in first.cache.to_legacy_cache()]
    for _ in range(2):  # the same cache twice gives the same twice
        second = encoder(x[:, 4:], cache=first.cache)
        assert_close(torch.cat([first.hidden, second.hidden], 1), whole.hidden, rms=1e-12)
    assert first.cache.get_seq_length() == 4 and second.cache.get_seq_length() == 6
    for old, new in zip(before, first.cache.to_legacy_cache()):
        assert torch.equal(old, new["recurrent_state"])
    peek = encoder(x[:, 4:], cache=first.cache, use_cache=False)
    assert peek.cache is None and torch.equal(peek.hidden, second.hidden)


def test_an_empty_cache_is_a_beginning():
    encoder, x = tiny(), torch.randn(2, 3, 3, dtype=torch.float64)
    for cache in (Cache(), _reset(encoder(x, use_cache=True).cache)):
        out = encoder(x, cache=cache)
        assert torch.equal(out.hidden, encoder(x).hidden) and out.cache.get_seq_length() == 3


def _reset(cache):
    cache.reset()
    return cache


def test_positions_are_counted_padded_and_lengths_real():
    encoder, x = tiny(), torch.randn(3, 5, 3, dtype=torch.float64)
    out = encoder(x, lengths=[5, 2, 0], use_cache=True)
    assert out.cache.get_seq_length() == 5 and out.cache.lengths.tolist() == [5, 2, 0]
    out = encoder(x[:, :2], attention_mask=torch.tensor([[0, 1], [0, 0], [1, 1]]), cache=out.cache)
    assert out.cache.get_seq_length() == 7 and out.cache.lengths.tolist() == [6, 2, 2]
    out = encoder(x[:, :1], cache=out.cache)
    assert out.cache.get_seq_length() == 8 and out.cache.lengths.tolist() == [7, 3, 3]


@cases(given=["cache", "use_cache"])
def test_a_bidirectional_encoder_refuses_a_cache_with_the_reason(given):
    encoder, x = tiny(direction="bidirectional"), torch.randn(1, 2, 3, dtype=torch.float64)
    arguments = dict(cache=Cache()) if given == "cache" else dict(use_cache=True)
    with raises(ValueError, "encoder: cache cannot be used with direction='bidirectional'",
                "reading backwards starts at the end of a sequence; build it with encoder.direction=causal"):
        encoder(x, **arguments)


def test_a_foreign_cache_is_refused():
    encoder, x = tiny(), torch.randn(2, 3, 3, dtype=torch.float64)
    cache = encoder(x, use_cache=True).cache
    with raises(CacheError, "encoder: cache must be a myfla.models.utils.Cache; got 'dict'"):
        encoder(x, cache={})
    with raises(CacheError, "encoder: batch must be 1; got 2"):
        encoder(x[:1], cache=cache)
    with raises(CacheError, "encoder: fingerprint must be that of the model"):
        tiny(scale=0.25)(x, cache=cache)
    unnamed = cache.fork()
    unnamed.fingerprint = None
    with raises(CacheError, "encoder: layers must be 3; got 2"):
        tiny(num_layers=3)(x, cache=unnamed)
    with raises(CacheError, "dtype of 0.recurrent_state must be torch.float32", "got torch.float64"):
        tiny(dtype=torch.float32)(x.float(), cache=unnamed)
    with raises(CacheError, "encoder: cache must be on the encoder's device cpu; got 'meta'; use cache.to('cpu')"):
        encoder(x, cache=unnamed.to("meta"))
    assert torch.equal(encoder(x, cache=unnamed).hidden, encoder(x, cache=cache).hidden)


BAD = {
    "kind": ([[1.0]], "encoder: x must be a tensor; got 'list'"),
    "rank": (torch.zeros(2, 3), "encoder: x must have shape [B, T, 3]; got [2, 3]; encoder.input_size=3"),
    "width": (torch.zeros(2, 4, 5), "encoder: x must have shape [B, T, 3]; got [2, 4, 5]; encoder.input_size=3"),
    "dtype": (torch.zeros(2, 4, 3), "encoder: x must have the encoder's dtype torch.float64; got torch.float32; "
                                    "use x.to(torch.float64) or encoder.to(torch.float32)"),
    "integers": (torch.zeros(2, 4, 3).long(), "x must have the encoder's dtype torch.float64; got torch.int64"),
    "device": (torch.zeros(2, 4, 3, device="meta").double(),
               "encoder: x must be on the encoder's device cpu; got 'meta'"),
}
BAD_IDS = {
    "rank": (torch.zeros(2, 3, 1).long(),
             "encoder: x must have shape [B, T] of token ids; got [2, 3, 1]; encoder.vocab_size=10"),
    "dtype": (torch.zeros(2, 3), "encoder: x must be int32 or int64 token ids; got torch.float32"),
    "high": (torch.tensor([[1, 10]]), "encoder: x must hold token ids from 0 to 9; got 10; encoder.vocab_size=10"),
    "low": (torch.tensor([[1, -1]]), "encoder: x must hold token ids from 0 to 9; got -1"),
}


@cases(what=list(BAD))
def test_features_that_do_not_fit_are_refused(what):
    x, message = BAD[what]
    with raises(ValueError, message):
        tiny()(x)


@cases(what=list(BAD_IDS))
def test_token_ids_that_do_not_fit_are_refused(what):
    x, message = BAD_IDS[what]
    with raises(ValueError, message):
        tiny(vocab_size=10)(x)


def test_autocast_may_mix_dtypes():
    encoder, x = tiny(dtype=torch.float32), torch.randn(2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(x.bfloat16()).hidden.shape == (2, 3, 6)


@cases(shape=[(0, 4, 3), (2, 0, 3), (0, 0, 3)], direction=["causal", "bidirectional"])
def test_empty_batches_and_empty_sequences_pass(shape, direction):
    out = tiny(direction=direction)(torch.zeros(shape, dtype=torch.float64))
    assert out.hidden.shape == (*shape[:2], 6) and out.embedding.shape == (shape[0], 6)


def test_an_unknown_keyword_is_a_type_error():
    with raises(TypeError, "mask"):
        tiny()(torch.zeros(1, 1, 3), mask=None)


def test_an_encoder_needs_to_know_its_input():
    with raises(ValueError, "encoder.input_size must be set, or encoder.vocab_size; got None"):
        build_encoder(GatedDeltaNetEncoderConfig())


def test_a_config_changed_after_it_was_made_is_checked_again():
    config = TinyConfig(input_size=3)
    config.num_layers = 0
    with raises(ConfigError, "encoder.num_layers must be an integer from 1 to 1024; got 0"):
        TinyStrategy().build(config)
    config.num_layers = 1
    encoder = TinyStrategy().build(config)
    config.num_layers = 7
    assert encoder.config.num_layers == 1


def test_what_is_no_config_is_refused():
    with raises(ValueError, "build_encoder: config must be an EncoderConfig or a mapping; got 'NoneType'"):
        build_encoder(None)
    with raises(ValueError, "TinyStrategy.build: config must be a TinyConfig; got 'GatedDeltaNetEncoderConfig'"):
        TinyStrategy().build(GatedDeltaNetEncoderConfig(input_size=3))
    with raises(ConfigError, "encoder.name must be a string; got None"):
        build_encoder({"input_size": 3})
    with raises(ConfigError, "encoder.num_layer is not a field of encoder 'rwkv7'; got 2; did you mean 'num_layers'?"):
        build_encoder({"name": "rwkv7", "num_layer": 2})


def test_the_fingerprint_names_the_settings():
    assert tiny().fingerprint == tiny().fingerprint != tiny(scale=0.25).fingerprint
    assert f"tiny, causal, fingerprint={tiny().fingerprint}" in repr(tiny())

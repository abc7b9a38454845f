"""The official protocol of `Cache`: states by layer, counts, windows, rows, and the older class."""

import torch

from caches import filled, same
from myfla.models import utils
from myfla.models.cache_utils import Cache, FLACache, FLALayer, LegacyFLACache
from myfla.testing import cases, raises
from myfla.utils.errors import CacheError


def tokens(start, length, batch=1):
    keys = torch.arange(start, start + length, dtype=torch.float32).view(1, -1, 1, 1).expand(batch, length, 2, 3)
    return keys.contiguous(), keys + 1000


def test_every_official_import_path_gives_the_same_classes():
    for name in ("Cache", "FLACache", "FLALayer", "LegacyFLACache"):
        assert getattr(utils, name) is globals()[name]


def test_update_makes_layers_keeps_what_is_not_given_and_counts():
    cache = Cache()
    first, second = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    cache.update(recurrent_state=first, layer_idx=1, offset=3)
    assert len(cache) == 2 and cache[0] is None and cache.get_seq_length(0) == 0 and not cache.is_initialized
    state = cache.update(conv_state=(second,), layer_idx=1, offset=None)
    assert state["recurrent_state"] is first and state["conv_state"][0] is second
    assert state is cache[1] and list(state) == ["recurrent_state", "attn_state", "conv_state", "ffn_state"]
    assert cache.get_seq_length(1) == 4 and cache.get_seq_length(7) == 0 and cache.get_seq_length(None) == 0
    cache.update(ffn_state=second, layer_idx=0, offset=0)
    assert cache.is_initialized and [s is not None for s in cache] == [True, True]


def test_positional_order_of_update_is_the_official_one():
    cache = Cache()
    a, b, c = torch.zeros(1, 1, 1, 1), torch.ones(1, 2), torch.full((1, 3), 2.0)
    cache.update(a, None, b, c, 0, 7, None)
    assert cache[0]["recurrent_state"] is a and cache[0]["conv_state"] is b and cache[0]["ffn_state"] is c
    assert cache.get_seq_length() == 7


def test_an_old_state_dict_stays_what_it_was():
    cache = filled()
    before = cache[0]
    kept = before["recurrent_state"]
    cache.update(recurrent_state=torch.zeros(2, 2, 3, 4), layer_idx=0)
    assert before["recurrent_state"] is kept and cache[0]["recurrent_state"] is not kept


def test_a_state_is_inert():
    cache = Cache()
    cache.update(recurrent_state=torch.zeros(1, 1, 1, 1), A_state=torch.ones(1), offset=1)
    assert "A_state" not in cache[0]


def test_an_empty_cache_is_false_and_unbounded():
    assert not Cache() and Cache().get_max_cache_shape() == Cache().get_max_length() == -1
    assert FLALayer().get_max_cache_shape() == FLALayer().get_max_length() == -1
    assert Cache.is_compileable is False and isinstance(Cache(seen_tokens=3), FLACache)


def test_lengths_count_real_tokens_beside_the_padded_count():
    cache = Cache()
    state = torch.zeros(3, 1, 1, 1)
    assert cache.lengths is None
    cache.update(recurrent_state=state, offset=5)
    assert cache.lengths.tolist() == [5, 5, 5] and cache.lengths.dtype == torch.int64
    cache.update(recurrent_state=state, offset=4, lengths=torch.tensor([4, 1, 0]))
    cache.update(recurrent_state=state, offset=1)
    assert cache.get_seq_length() == 10 and cache.lengths.tolist() == [10, 7, 6]
    cache.update(ffn_state=torch.zeros(3, 2), offset=0)
    assert cache.lengths.tolist() == [10, 7, 6]


def test_reset_forgets_and_keeps_the_layers():
    cache = filled(lengths=torch.tensor([5, 2]))
    cache.reset()
    assert len(cache) == 2 and cache[0] is None and cache.get_seq_length() == 0 and cache.lengths is None
    assert cache.to_legacy_cache() == (None, None)
    cache.update(recurrent_state=torch.zeros(7, 1, 1, 1), offset=2)
    assert cache.get_seq_length() == 2 and cache.lengths.tolist() == [2] * 7


@cases(first=[2, 4], second=[0, 1, 4, 6], window=[None, 4])
def test_an_attention_state_keeps_its_tail(first, second, window):
    options = {} if window is None else {"window_size": window}
    for cache in (Cache(), LegacyFLACache()):
        for start, length in ((0, first), (first, second)):
            cache.update(attn_state=tokens(start, length), offset=length, cache_kwargs=options)
        keys, values = cache[0]["attn_state"]
        want = list(range(first + second))[-(window or 100):]
        assert keys[0, :, 0, 0].tolist() == want and torch.equal(values, keys + 1000)
        assert cache.get_seq_length(0) == first + second


def test_mask_sizes_follow_the_window():
    cache = Cache()
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    cache.update(attn_state=tokens(0, 10), cache_kwargs={"window_size": 4})
    assert cache.get_mask_sizes(2, 0) == (5, 7) and cache.get_mask_sizes(torch.arange(2), 0) == (5, 7)
    cache.update(recurrent_state=torch.zeros(1, 1, 1, 1), layer_idx=1, offset=10)
    assert cache.get_mask_sizes(2, 1) == (12, 0)


def test_rows_are_picked_and_repeated_in_every_layer():
    plain = filled(3, lengths=torch.tensor([5, 4, 1]))
    cache = plain.fork()
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.lengths.tolist() == [1, 5, 5] and cache.get_seq_length() == 5
    assert torch.equal(cache[1]["conv_state"][2], plain[1]["conv_state"][2][[2, 0, 0]])
    cache.batch_select_indices(torch.tensor([1]))
    assert torch.equal(cache[0]["recurrent_state"], plain[0]["recurrent_state"][:1])
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache[0]["recurrent_state"], plain[0]["recurrent_state"][[0, 0]])
    assert cache.lengths.tolist() == [5, 5]


def test_crop_needs_states_that_were_not_kept():
    cache = filled(offset=5)
    cache.crop(5)
    cache.crop(9)
    with raises(NotImplementedError, "fork", "rollback"):
        cache.crop(-1)
    cache = Cache()
    cache.update(attn_state=tokens(0, 6))
    cache.crop(-2)
    assert cache.get_seq_length() == 4 and cache[0]["attn_state"][0].shape[1] == 4
    cache.update(attn_state=tokens(4, 6), cache_kwargs={"window_size": 3})
    with raises(NotImplementedError, "window"):
        cache.crop(1)


def test_legacy_round_trip():
    cache = filled()
    again = Cache.from_legacy_cache(cache.to_legacy_cache(), seen_tokens=5)
    assert same(cache, again) and again[0] is not cache[0]
    assert Cache.from_legacy_cache(again) is again and len(Cache.from_legacy_cache(None)) == 0
    old = LegacyFLACache()
    old.update(recurrent_state=torch.ones(1, 1, 1, 1), offset=3)
    assert Cache.from_legacy_cache(old).get_seq_length() == 3
    assert Cache.from_legacy_cache([None, {"ffn_state": torch.ones(2, 1)}]).batch_size == 2


def test_the_older_class_shares_one_counter():
    cache = LegacyFLACache()
    for length in (5, 1):
        for layer in range(3):
            cache.update(recurrent_state=torch.full((1,), float(layer)), layer_idx=layer, offset=length)
    assert cache.get_seq_length(2) == 6 and len(cache) == 3
    assert [float(s["recurrent_state"]) for s in cache] == [0, 1, 2]
    assert cache.get_seq_length(3) == 0 and cache.get_max_cache_shape() is None
    assert LegacyFLACache.from_legacy_cache(cache.to_legacy_cache(), 6).get_seq_length() == 6
    cache.reset()
    assert len(cache) == 0
    with raises(KeyError, "layer 0"):
        cache[0]


def test_messages_name_who_field_and_way_out():
    cache = filled(2)
    with raises(TypeError, "Cache.update", "'recurent_state'", "recurrent_state"):
        cache.update(recurent_state=torch.zeros(1))
    with raises(ValueError, "Cache.update: layer_idx", "-1"):
        cache.update(layer_idx=-1)
    with raises(ValueError, "attn_state", "tuple or list", "Tensor"):
        cache.update(attn_state=torch.zeros(1, 1))
    with raises(CacheError, "Cache.update: recurrent_state", "batch size 2", "got 3", "reset()"):
        cache.update(recurrent_state=torch.zeros(3, 2, 3, 4))
    with raises(CacheError, "conv_state.1", "batch size 2"):
        cache.update(conv_state=(torch.zeros(2, 1), torch.zeros(1, 1)))
    with raises(CacheError, "ffn_state", "first axis"):
        cache.update(ffn_state=torch.tensor(1.0))
    with raises(ValueError, "lengths", "integer tensor [2]"):
        cache.update(lengths=torch.zeros(2))
    with raises(ValueError, "lengths", "integer tensor [2]", "[3]"):
        cache.update(lengths=torch.zeros(3, dtype=torch.int64))
    with raises(KeyError, "layer 9", "2 layers"):
        cache[9]
    with raises(CacheError, "reorder_cache: rows", "0..1", "2"):
        cache.reorder_cache(torch.tensor([0, 2]))
    with raises(CacheError, "rows", "integers", "float32"):
        cache.batch_select_indices(torch.tensor([0.5]))
    with raises(CacheError, "rows", "integers", "'ab'"):
        cache.batch_select_indices("ab")
    with raises(ValueError, "repeats", "positive", "0"):
        cache.batch_repeat_interleave(0)
    with raises(TypeError, "from_legacy_cache: past_key_values", "int"):
        Cache.from_legacy_cache(3)
    with raises(CacheError, "layer 0", "recurrent_state", "'stat'"):
        Cache.from_legacy_cache([{"stat": torch.zeros(1)}])
    with raises(TypeError, "Cache", "'seen_token'", "seen_tokens"):
        Cache(seen_token=1)
    with raises(NotImplementedError, "offloading"):
        Cache(offloading=True)
    with raises(NotImplementedError, "type object"):
        Cache.from_legacy_cache([{"ffn_state": object()}])

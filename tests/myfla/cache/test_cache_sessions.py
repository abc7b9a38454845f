"""What `Cache` offers beyond the official protocol: sessions as a batch, forks, copies, layouts."""

import torch

from caches import advance, filled, same
from myfla.models.utils import Cache, LegacyFLACache
from myfla.testing import cases, raises
from myfla.utils.errors import CacheError


def test_stack_and_unstack_are_inverse():
    sessions = [filled(batch, seed=batch, offset=offset) for batch, offset in ((2, 5), (1, 9), (3, 1))]
    sessions[0].update(recurrent_state=torch.randn(2, 2, 3, 4), offset=4, lengths=torch.tensor([4, 1]))
    batch = Cache.stack(sessions)
    assert batch.batch_size == 6 and batch.get_seq_length(0) == 9
    assert batch.lengths.tolist() == [9, 6, 9, 1, 1, 1]
    for one, again in zip(sessions, batch.unstack()):
        assert same(one, again)


def test_sessions_advance_together_as_alone():
    sessions = [filled(1, seed=i, offset=i) for i in range(4)]
    together = Cache.stack(sessions)
    advance(together, 3, torch.tensor([3, 0, 2, 3]))
    for i, (one, again) in enumerate(zip(sessions, together.unstack())):
        assert again.get_seq_length() == i + 3
        assert again.lengths.tolist() == [i + [3, 0, 2, 3][i]]
        advance(one, 3, torch.tensor([[3, 0, 2, 3][i]]))
        assert same(one, again)


def test_a_session_that_has_not_begun_joins_with_zeros():
    old, new = filled(2), Cache()
    batch = Cache.stack([new, old])
    assert batch.batch_size == 3 and batch.lengths.tolist() == [0, 5, 5]
    assert all(float(t[0].abs().sum()) == 0 for t in (batch[0]["recurrent_state"], *batch[1]["conv_state"]))
    first, second = batch.unstack()
    assert first.get_seq_length() == 0 and first.lengths.tolist() == [0] and same(second, old)
    nothing = Cache.stack([Cache(), Cache()])
    assert len(nothing) == 0 and [len(cache) for cache in nothing.unstack()] == [0, 0]


def test_unstack_by_given_sizes_and_one_by_one():
    cache = filled(4)
    assert [c.batch_size for c in cache.unstack()] == [1] * 4
    assert [c.batch_size for c in cache.unstack([1, 3])] == [1, 3]
    assert same(Cache.stack(cache.unstack([1, 3])), cache)
    picked = Cache.stack([filled(2), filled(1)]).select([2, 0])
    assert [c.batch_size for c in picked.unstack()] == [1, 1]


def test_an_unstacked_session_has_its_own_memory_unless_asked_otherwise():
    cache = filled(4)
    state = cache[0]["recurrent_state"]
    start, end = state.data_ptr(), state.data_ptr() + state.numel() * 4
    own, view = cache.unstack()[1][0]["recurrent_state"], cache.unstack(copy=False)[1][0]["recurrent_state"]
    assert not start <= own.data_ptr() < end and start <= view.data_ptr() < end


@cases(rows=[[2, 0], [1, 1, 1, 1], [], slice(1, None), -1, torch.tensor([True, False, True])])
def test_select_equals_indexing(rows):
    cache = filled(3, lengths=torch.tensor([5, 3, 0]))
    picked = cache.select(rows)
    rows = [rows] if isinstance(rows, int) else rows
    for i in range(2):
        assert torch.equal(picked[i]["recurrent_state"], cache[i]["recurrent_state"][rows])
        assert all(torch.equal(x, y[rows]) for x, y in zip(picked[i]["conv_state"], cache[i]["conv_state"]))
        assert torch.equal(picked.get_lengths(i), cache.get_lengths(i)[rows])


def test_a_selected_session_counts_from_its_own_beginning():
    batch = Cache.stack([filled(1, offset=9), filled(1, offset=2)])
    assert batch.select([1]).get_seq_length() == 2 and batch.select([1, 0]).get_seq_length() == 9
    batch.reorder_cache(torch.tensor([1, 1]))
    assert batch.get_seq_length() == 2 and batch.lengths.tolist() == [2, 2]


def test_repeat_and_reorder_leave_the_original():
    cache = filled(2, lengths=torch.tensor([5, 4]))
    before = cache.fork()
    beams = cache.repeat(3)
    assert beams.batch_size == 6 and beams.lengths.tolist() == [5, 5, 5, 4, 4, 4]
    swapped = cache.reorder([1, 0])
    assert swapped.lengths.tolist() == [4, 5] and same(swapped.reorder([1, 0]), cache) and same(cache, before)


def test_a_fork_shares_memory_and_stays_what_it_was():
    cache = filled(2, lengths=torch.tensor([5, 4]))
    fork, copy = cache.fork(), cache.to(dtype=torch.float64).to(dtype=torch.float32)
    assert fork[0]["recurrent_state"] is cache[0]["recurrent_state"]
    advance(cache, 3, torch.tensor([0, 3]))
    cache[0]["conv_state"] = None
    cache.reorder_cache([1, 1])
    assert same(fork, copy) and not torch.equal(fork[0]["recurrent_state"], cache[0]["recurrent_state"])
    assert cache.rollback(fork) is cache and same(cache, copy)
    advance(cache, 1, None)
    assert same(cache.rollback(fork), copy)


def test_a_fork_of_an_empty_cache_brings_the_beginning_back():
    cache = Cache()
    start = cache.fork()
    advance(cache, 4, None, layers=2)
    assert len(cache.rollback(start)) == 0 and cache.get_seq_length() == 0


def test_to_converts_activations_and_keeps_sums_wide():
    cache = filled(2, lengths=torch.tensor([5, 4]))
    for half in (cache.to(dtype=torch.bfloat16), cache.to(torch.bfloat16)):
        assert half[0]["recurrent_state"].dtype == torch.float32
        assert {t.dtype for t in half[0]["conv_state"]} == {torch.bfloat16}
        assert half.lengths.dtype == torch.int64
    assert cache.to(dtype=torch.float64)[1]["recurrent_state"].dtype == torch.float64
    assert same(cache.to("cpu"), cache)
    meta = cache.to("meta")
    assert meta[0]["conv_state"][0].device.type == meta.lengths.device.type == "meta"
    with raises(ValueError, "Cache.to: dtype", "floating-point", "int64"):
        cache.to(dtype=torch.int64)


def test_detach_cuts_gradients_only_in_the_copy():
    state = torch.ones(1, 1, 2, 2, requires_grad=True) * 2
    cache = Cache()
    cache.update(recurrent_state=state)
    assert not cache.detach()[0]["recurrent_state"].requires_grad and cache[0]["recurrent_state"].requires_grad
    stacked = Cache.stack([cache, cache.detach()])
    assert stacked.select([0])[0]["recurrent_state"].requires_grad


def test_nbytes_counts_every_tensor():
    assert Cache().nbytes == 0
    cache = filled(2, layers=1)
    assert cache.nbytes == 4 * 2 * (2 * 3 * 4 + (6 + 6 + 8) * 4)
    assert filled(2, layers=1, lengths=torch.tensor([1, 2])).nbytes == cache.nbytes + 2 * 8


def test_repr_shows_layers_shapes_and_lengths():
    cache = filled(2, lengths=torch.tensor([5, 3]))
    cache.fingerprint = "gdn-32"
    text = repr(cache)
    for part in ("2 layers", "batch 2", "'gdn-32'", "1: 5 tokens, real 5 3", "recurrent_state [2, 2, 3, 4] float32",
                 "conv_state.2 [2, 8, 4]"):
        assert part in text, (part, text)
    assert repr(Cache()) == "Cache(0 layers, batch None, 0 bytes)"
    assert "... (20 rows)" in repr(filled(20))


@cases(v_first=[True, False, [True, False]])
def test_fla_round_trip_swaps_only_recurrent_states(v_first):
    cache = filled(2)
    dicts = cache.to_fla(state_v_first=v_first)
    flags = v_first if isinstance(v_first, list) else [v_first] * 2
    for i, (state, swapped) in enumerate(zip(dicts, flags)):
        want = cache[i]["recurrent_state"].transpose(2, 3) if swapped else cache[i]["recurrent_state"]
        assert torch.equal(state["recurrent_state"], want) and state["recurrent_state"].is_contiguous()
        assert state["conv_state"][1] is cache[i]["conv_state"][1]
    assert same(Cache.from_fla(dicts, state_v_first=v_first, seen_tokens=5), cache)


def test_from_fla_asks_an_official_cache_for_its_count():
    official = LegacyFLACache()
    official.update(recurrent_state=torch.randn(1, 1, 2, 3), offset=7)
    cache = Cache.from_fla(official)
    assert cache.get_seq_length() == 7 and cache[0]["recurrent_state"].shape == (1, 1, 3, 2)
    assert len(Cache.from_fla([None])) == 1


def test_every_copy_keeps_the_fingerprint():
    cache = filled(2)
    cache.fingerprint = "a"
    copies = [cache.fork(), cache.to("cpu"), cache.detach(), cache.select([0]), cache.repeat(2), cache.reorder([1, 0]),
              Cache.stack([cache, cache]), *cache.unstack()]
    assert {copy.fingerprint for copy in copies} == {"a"}


def test_messages_name_the_field_that_differs():
    cache = filled(2)
    with raises(CacheError, "Cache.stack: caches", "at least one"):
        Cache.stack([])
    with raises(CacheError, "Cache.stack: caches", "tuple"):
        Cache.stack([cache, ()])
    with raises(CacheError, "Cache.stack: layers", "[2, 1]"):
        Cache.stack([cache, filled(1, layers=1)])
    with raises(CacheError, "layer 0 recurrent_state size", "(2, 3, 4)", "(2, 3, 5)"):
        Cache.stack([cache, filled(2, value=5)])
    with raises(CacheError, "layer 0 conv_state.0 dtype", "torch.bfloat16"):
        Cache.stack([cache, cache.to(dtype=torch.bfloat16)])
    with raises(CacheError, "layer 0 recurrent_state device", "meta"):
        Cache.stack([cache, cache.to("meta")])
    bare = Cache()
    for i in range(2):
        bare.update(recurrent_state=torch.zeros(2, 2, 3, 4), layer_idx=i)
    with raises(CacheError, "layer 0 conv_state", "tuple", "NoneType"):
        Cache.stack([cache, bare])
    other = filled(2)
    other.fingerprint = "b"
    with raises(CacheError, "fingerprint", "one model", "b"):
        Cache.stack([cache, other])
    with raises(CacheError, "Cache.rollback: fingerprint", "None", "'b'"):
        cache.rollback(other)
    with raises(CacheError, "Cache.rollback: fork", "dict"):
        cache.rollback({})
    with raises(CacheError, "Cache.unstack: sizes", "batch size 2", "[1, 2]"):
        cache.unstack([1, 2])
    with raises(CacheError, "Cache.reorder: rows", "2 numbers", "3", "select"):
        cache.reorder([0, 1, 1])
    with raises(CacheError, "Cache.select: rows", "mask", "[2]", "[3]"):
        cache.select(torch.tensor([True, False, True]))
    with raises(CacheError, "Cache.select: rows", "0..1", "-3"):
        cache.select([-3])
    with raises(CacheError, "from_fla: past_key_values", "this library"):
        Cache.from_fla(cache)
    with raises(CacheError, "from_fla: state_v_first", "2", "[True]"):
        Cache.from_fla(cache.to_fla(), state_v_first=[True])
    with raises(CacheError, "layer 0 recurrent_state", "4 axes", "[1, 2, 3]"):
        Cache.from_fla([{"recurrent_state": torch.zeros(1, 2, 3)}])


def test_require_names_what_is_not_as_asked():
    cache = filled(2).to(torch.bfloat16)
    cache.fingerprint = "a"
    cache.require("here", fingerprint="a", layers=2, batch=2, dtype=torch.bfloat16)
    for field, wanted in (("fingerprint", "b"), ("layers", 3), ("batch", 1)):
        with raises(CacheError, f"here: {field}", str(wanted), "another model"):
            cache.require("here", **{field: wanted})
    with raises(CacheError, "dtype of 0.conv_state.0", "float32", "bfloat16", "cache.to("):
        cache.require("here", dtype=torch.float32)

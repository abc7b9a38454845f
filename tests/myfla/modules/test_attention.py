"""`Attention`, the layers of softmax attention in hybrid models: a float64 loop is the truth, pads are invisible."""

import copy

import pytest
import torch

from attention_truth import attention_truth
from myfla.layers import Attention, attn_core
from myfla.models import Cache
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CacheError

D = torch.float64
SETTINGS = {
    "plain": {},
    "grouped, with biases": dict(num_kv_heads=2, qkv_bias=True),
    "one key head, normed": dict(num_kv_heads=1, qk_norm=True, rope_theta=500.0),
    "window": dict(num_kv_heads=2, window_size=5),
}


def build(settings="plain", dtype=D, **more):
    torch.manual_seed(3)
    layer = Attention(**{**dict(hidden_size=32, num_heads=4, layer_idx=0), **SETTINGS[settings], **more}, dtype=dtype)
    with torch.no_grad():
        for _name, weight in layer.named_parameters():
            weight.normal_(std=0.25) if weight.dim() > 1 else weight.add_(torch.randn_like(weight) / 5)
    return layer


def data(*shape, dtype=D, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradients(function, layer, x):
    x = x.detach().requires_grad_()
    y = function(x)
    wanted = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad((y * data(*y.shape, dtype=y.dtype, seed=9)).sum(), wanted)]


@cases(settings=sorted(SETTINGS), T=[1, 2, 13])
def test_outputs_and_gradients_equal_the_float64_loop(settings, T):
    layer, x = build(settings), data(2, T, 32)
    want = with_gradients(lambda x: torch.stack([attention_truth(layer, row) for row in x]), layer, x)
    narrow = copy.deepcopy(layer).float()
    for rms, own, given in ((1e-12, layer, x), (1e-6, narrow, x.float())):
        got = with_gradients(lambda x, layer=own: layer(x)[0], own, given)
        assert_close(got[0].to(D), want[0], rms=rms)
        # Together: for one token the gradients of queries and keys are zero, and rounding is all of them.
        assert_close(*(torch.cat([part.flatten().to(D) for part in side[1:]]) for side in (got, want)), rms=rms)


@cases(settings=sorted(SETTINGS))
def test_plain_operations_equal_the_kernel_of_torch(settings, monkeypatch):
    layer, x = build(settings), data(2, 9, 32)
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    want = [layer(x)[0], layer(x, attention_mask=mask)[0]]
    monkeypatch.setattr(attn_core, "_kernel", None)
    for got, true in zip([layer(x)[0], layer(x, attention_mask=mask)[0]], want):
        assert_close(got, true, rms=1e-13)


@cases(settings=sorted(SETTINGS), use_cache=[False, True])
def test_pads_are_invisible_wherever_they_stand_and_whatever_they_hold(settings, use_cache):
    layer, x = build(settings), data(3, 12, 32)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :5], mask[1, [2, 7, 11]], mask[2, 4:] = 0, 0, 0
    filled = x.masked_fill(mask[..., None] == 0, float("nan"))
    cache = Cache() if use_cache else None
    y = layer(filled, attention_mask=mask, past_key_values=cache, use_cache=use_cache)[0]
    for row in range(3):
        keep = mask[row].bool()
        assert_close(y[row, keep], attention_truth(layer, x[row, keep]), rms=1e-12)
        assert not y[row, ~keep].any()
    if use_cache:
        assert cache.lengths.tolist() == [7, 9, 4] and cache.get_seq_length() == 12
        assert all(torch.isfinite(state).all() for state in cache[0]["attn_state"])


@cases(settings=sorted(SETTINGS), cuts=[(1, 2), (7, 8, 9), (3, 12)], pads=[False, True])
def test_any_split_through_the_cache_equals_the_whole(settings, cuts, pads):
    layer, x = build(settings), data(2, 14, 32)
    mask = torch.ones(2, 14, dtype=torch.long)
    if pads:
        mask[0, :4], mask[1, [0, 5, 8, 13]] = 0, 0
    cache, pieces = Cache(), []
    for start, end in zip((0, *cuts), (*cuts, 14)):
        out = layer(x[:, start:end], attention_mask=mask[:, start:end], past_key_values=cache, use_cache=True)[0]
        read_only = layer(x[:, end:], attention_mask=mask[:, end:], past_key_values=cache)[0] if end < 14 else None
        pieces.append(out)
    assert_close(torch.cat(pieces, 1), layer(x, attention_mask=mask)[0], rms=1e-12)
    assert cache.lengths.tolist() == mask.sum(1).tolist() and cache.get_seq_length() == 14
    assert read_only is None or torch.isfinite(read_only).all()
    kept = min(14, layer.window_size or 14)
    assert [state.shape for state in cache[0]["attn_state"]] == [(2, kept, layer.kv_dim)] * 2


@cases(settings=sorted(SETTINGS))
def test_packed_sequences_equal_the_sequences_alone_and_go_on(settings):
    layer, x = build(settings), data(1, 20, 32)
    bounds, cache = [0, 6, 7, 7, 20], Cache()
    cu = torch.tensor(bounds)
    plain = layer(x, cu_seqlens=cu)[0]
    kept = layer(x, cu_seqlens=cu, past_key_values=cache, use_cache=True)[0]
    for start, end in zip(bounds, bounds[1:]):
        if end > start:
            want = layer(x[:, start:end])[0]
            assert_close(plain[:, start:end], want, rms=1e-12)
            assert_close(kept[:, start:end], want, rms=1e-12)
    assert cache.lengths.tolist() == [6, 1, 0, 13]
    more = data(1, 7, 32, seed=4)
    y = layer(more, cu_seqlens=torch.tensor([0, 2, 2, 4, 7]), past_key_values=cache, use_cache=True)[0]
    for n, (start, end) in enumerate(((0, 2), (2, 2), (2, 4), (4, 7))):
        whole = torch.cat([x[:, bounds[n] : bounds[n + 1]], more[:, start:end]], 1)
        if end > start:
            assert_close(y[:, start:end], layer(whole)[0][:, -(end - start) :], rms=1e-12)


@cases(settings=["plain", "window"])
def test_sessions_at_different_places_are_one_batch_and_part_again(settings):
    layer = build(settings)
    inputs = [data(1, length, 32, seed=length) for length in (3, 9, 6)]
    caches = [Cache() for _ in inputs]
    for x, cache in zip(inputs, caches):
        layer(x, past_key_values=cache, use_cache=True)
    batch, new = Cache.stack(caches), data(3, 2, 32, seed=50)
    y = layer(new, past_key_values=batch, use_cache=True)[0]
    for n, (x, alone) in enumerate(zip(inputs, batch.unstack())):
        whole = layer(torch.cat([x, new[n : n + 1]], 1))[0]
        assert_close(y[n : n + 1], whole[:, -2:], rms=1e-12)
        assert alone.get_seq_length() == x.shape[1] + 2
        last = layer(new[n : n + 1], past_key_values=alone)[0]
        assert_close(last, layer(torch.cat([x, new[n : n + 1], new[n : n + 1]], 1))[0][:, -2:], rms=1e-12)


def test_a_session_that_has_not_begun_joins_with_others():
    layer, x, new = build(), data(1, 4, 32), data(2, 3, 32, seed=7)
    begun = Cache()
    layer(x, past_key_values=begun, use_cache=True)
    y = layer(new, past_key_values=Cache.stack([begun, Cache()]), use_cache=True)[0]
    assert_close(y[1:], layer(new[1:])[0], rms=1e-12)
    assert_close(y[:1], layer(torch.cat([x, new[:1]], 1))[0][:, -3:], rms=1e-12)


def test_a_cache_that_does_not_know_its_pads_learns_them_from_a_mask_of_all_tokens():
    layer, x = build(), data(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    ours = Cache()
    layer(x[:, :8], attention_mask=mask[:, :8], past_key_values=ours, use_cache=True)
    foreign = Cache.from_legacy_cache(ours.to_legacy_cache(), seen_tokens=8)
    got = layer(x[:, 8:], attention_mask=mask, past_key_values=foreign)[0]
    assert_close(got, layer(x, attention_mask=mask)[0][:, 8:], rms=1e-12)


def test_states_that_were_read_are_never_written():
    layer, cache = build("window"), Cache()
    layer(data(1, 3, 32), past_key_values=cache, use_cache=True)
    fork, before = cache.fork(), [state.clone() for state in cache[0]["attn_state"]]
    layer(data(1, 4, 32), past_key_values=cache, use_cache=True)
    assert all(torch.equal(a, b) for a, b in zip(fork[0]["attn_state"], before))


def test_half_precision_keeps_its_format_and_far_positions_their_places():
    layer, x = build(dtype=torch.bfloat16), data(1, 40, 32, dtype=torch.bfloat16)
    wide = copy.deepcopy(layer).double()
    y = layer(x)[0]
    assert y.dtype == torch.bfloat16
    assert_close(y.double(), wide(x.double())[0], rms=2e-2)


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "custom_op"), reason="compiles with PyTorch 2.4")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_layer_equals_itself_with_masks_and_offsets(backend):
    layer, x = build("window"), data(2, 10, 32)
    mask = (torch.arange(10) >= torch.tensor([[0], [4]])).long()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert_close(compiled(x)[0], layer(x)[0], rms=1e-13)
    assert_close(compiled(x, attention_mask=mask)[0], layer(x, attention_mask=mask)[0], rms=1e-13)
    cu = torch.tensor([0, 3, 10])
    assert_close(compiled(x[:1], cu_seqlens=cu)[0], layer(x[:1], cu_seqlens=cu)[0], rms=1e-13)


WRONG = [
    (dict(num_kv_heads=3), ["num_kv_heads must divide num_heads=4", "3"]),
    (dict(hidden_size=36), ["num_heads must make heads of an even size from hidden_size=36", "4"]),
    (dict(window_size=0), ["window_size must be a positive integer", "0"]),
    (dict(num_heads=True), ["num_heads must be a positive integer", "True"]),
]


@cases(case=WRONG)
def test_wrong_settings_are_refused(case):
    with raises(ValueError, "Attention", *case[1]):
        Attention(**{**dict(hidden_size=32, num_heads=4), **case[0]})


def test_unknown_keywords_are_refused_with_the_nearest():
    with raises(TypeError, "num_kv_heads"):
        Attention(hidden_size=32, num_heads=4, num_kv_head=2)
    with raises(TypeError, "attention_mask"):
        build()(data(1, 2, 32), attention_masc=None)


def test_caches_of_other_layers_are_refused():
    layer, x = build(), data(2, 3, 32)
    for states, words in (
        ((torch.zeros(2, 3, 8, dtype=D),) * 2, ["attn_state keys channels must be 32", "8"]),
        ((torch.zeros(1, 3, 32, dtype=D),) * 2, ["attn_state keys batch must be 2", "1"]),
        ((torch.zeros(2, 3, 32, dtype=D),), ["attn_state must hold keys and values"]),
        ((torch.zeros(2, 3, 32, dtype=D), torch.zeros(2, 2, 32, dtype=D)), ["attn_state values length must be 3", "2"]),
    ):
        with raises(CacheError, "Attention", *words):
            layer(x, past_key_values=Cache.from_legacy_cache([dict(attn_state=states)], seen_tokens=3))
    recurrent = Cache()
    recurrent.update(recurrent_state=torch.zeros(2, 1, 4, 4), conv_state=torch.zeros(2, 1), offset=3)
    with raises(CacheError, "attn_state", "must be there, since the layer has seen tokens"):
        layer(x, past_key_values=recurrent)
    with raises(ValueError, "requires `layer_idx`"):
        build(layer_idx=None)(x, past_key_values=Cache())

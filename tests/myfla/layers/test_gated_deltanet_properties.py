"""Split, padding, packing and batching of the GatedDeltaNet layer, for cuts and masks that nobody chose."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from myfla.layers.gated_deltanet import GatedDeltaNet
from myfla.models.utils import Cache
from myfla.testing import assert_close

D, RMS = 16, 2e-6
torch.manual_seed(7)
LAYER = GatedDeltaNet(hidden_size=D, head_dim=8, num_heads=2, num_v_heads=4, conv_bias=True, layer_idx=0)
quick = settings(max_examples=30, deadline=None, derandomize=True)
lengths = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 80)), min_size=1, max_size=5)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def run(x, cache=None, grad=False, **kwargs):
    with torch.set_grad_enabled(grad):
        return LAYER.eval()(x, past_key_values=cache, use_cache=cache is not None, **kwargs)[0]


def same_states(a, b, rows=slice(None)):
    pairs = zip((a[0]["recurrent_state"], *a[0]["conv_state"]), (b[0]["recurrent_state"], *b[0]["conv_state"]))
    for x, y in pairs:
        assert_close(x[rows], y, rms=RMS)


@quick
@given(pieces=lengths, grad=st.booleans())
def test_any_split_equals_the_whole(pieces, grad):
    x = draw(2, sum(pieces), D)
    whole, split = Cache(), Cache()
    want = run(x, whole, grad)
    got = torch.cat([run(part, split, grad) for part in x.split(pieces, dim=1)], 1)
    assert_close(got, want, rms=RMS)
    same_states(split, whole)
    assert split.get_seq_length() == whole.get_seq_length() == sum(pieces)


@quick
@given(data=st.data())
def test_padding_is_invisible_on_any_sequence_of_calls(data):
    batch, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 30))
    bits = data.draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    cuts = sorted([0, tokens, *data.draw(st.lists(st.integers(0, tokens), max_size=3))])
    mask = torch.tensor(bits, dtype=torch.bool).view(batch, tokens)
    x = draw(batch, tokens, D).masked_fill(~mask.unsqueeze(-1), float("nan"))
    cache = Cache()
    y = [run(x[:, i:j], cache, attention_mask=mask[:, :j]) for i, j in zip(cuts[:-1], cuts[1:])]
    y = torch.cat(y, 1)
    assert not y[~mask].any() and cache.lengths.tolist() == mask.sum(1).tolist()
    for row in range(batch):
        alone = Cache()
        assert_close(y[row, mask[row]], run(x[row : row + 1, mask[row]], alone)[0], rms=RMS)
        same_states(cache, alone, slice(row, row + 1))


@quick
@given(sizes=lengths, grad=st.booleans())
def test_packed_equals_one_by_one(sizes, grad):
    x, cache = draw(1, sum(sizes), D), Cache()
    ends = torch.tensor([0, *sizes]).cumsum(0)
    y = run(x, cache, grad, cu_seqlens=ends)
    for n in range(len(sizes)):
        alone = Cache()
        assert_close(y[:, ends[n] : ends[n + 1]], run(x[:, ends[n] : ends[n + 1]], alone, grad), rms=RMS)
        same_states(cache, alone, slice(n, n + 1))
    assert cache.lengths.tolist() == sizes


@quick
@given(ages=st.lists(st.integers(0, 20), min_size=1, max_size=4), steps=st.integers(1, 3))
def test_sessions_of_any_age_run_as_one_batch(ages, steps):
    sessions = [Cache() for _ in ages]
    for age, cache in zip(ages, sessions):
        if age:
            run(draw(1, age, D), cache)
    step = draw(len(ages), steps, D)
    together = Cache.stack(sessions)
    y = run(step, together)
    for n, (cache, after) in enumerate(zip(sessions, together.unstack())):
        assert_close(y[n : n + 1], run(step[n : n + 1], cache), rms=RMS)
        same_states(after, cache)
        assert after.get_seq_length() == cache.get_seq_length() == ages[n] + steps

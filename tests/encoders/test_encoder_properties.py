"""What holds for every encoder: splits, pads, packing, order, sessions; outputs, states and gradients."""

import threading

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abilities import skip_without_products
from encoders import build_encoder
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases
from small_encoders import HEADED, NAMES, small

TIGHT = 1e-10  # float64 throughout: what differs is only the order of sums
STATES = ("recurrent_state", "conv_state", "ffn_state")


def data(*shape, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)


def flat_states(cache):
    """Every state tensor of a cache, in order."""
    found = []
    for state in cache.to_legacy_cache():
        for field in STATES:
            value = state[field]
            found += [] if value is None else list(value) if isinstance(value, (tuple, list)) else [value]
    return found


def assert_same_cache(got, want, rows=slice(None)):
    a, b = flat_states(got), flat_states(want)
    assert len(a) == len(b) > 0
    for left, right in zip(a, b):
        assert_close(left, right[rows], rms=TIGHT)


cuts = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(sorted)


@cases(name=NAMES, grad=[True, False])
@settings(max_examples=12, deadline=None)
@given(cuts=cuts)
def test_any_split_equals_the_whole(name, grad, cuts):
    encoder, x = small(name), data(2, 9, 3)
    with torch.set_grad_enabled(grad):
        whole = encoder(x, use_cache=True)
        parts, cache = [], None
        for start, end in zip([0, *cuts], [*cuts, 9]):
            out = encoder(x[:, start:end], cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.hidden)
    assert_close(torch.cat(parts, 1), whole.hidden, rms=TIGHT)
    assert_same_cache(cache, whole.cache)
    assert cache.get_seq_length() == 9 and cache.lengths.tolist() == [9, 9]


@cases(name=NAMES)
def test_rows_that_advance_unevenly_equal_rows_alone(name):
    encoder, x = small(name), data(3, 8, 3)
    pieces = [[3, 0, 1], [0, 2, 1], [5, 5, 0], [0, 1, 6]]
    cache, fed = None, [0, 0, 0]
    hidden = [[], [], []]
    for piece in pieces:
        chunk = torch.full((3, max(piece), 3), float("nan"), dtype=torch.float64)
        for row, n in enumerate(piece):
            chunk[row, :n] = x[row, fed[row] : fed[row] + n]
            fed[row] += n
        out = encoder(chunk, lengths=piece, cache=cache, use_cache=True)
        cache = out.cache
        for row, n in enumerate(piece):
            hidden[row].append(out.hidden[row, :n])
    assert fed == [8, 8, 8] and cache.lengths.tolist() == [8, 8, 8]
    whole = encoder(x, use_cache=True)
    assert_close(torch.stack([torch.cat(parts) for parts in hidden]), whole.hidden, rms=TIGHT)
    assert_same_cache(cache, whole.cache)


@cases(name=NAMES, dtype=[torch.float32])
def test_any_split_equals_the_whole_in_float32(name, dtype):
    encoder, x = small(name, dtype), data(2, 100, 3).to(dtype)
    with torch.no_grad():
        whole = encoder(x)
        cache, parts = None, []
        for piece in x.split([1, 0, 63, 1, 30, 5], dim=1):
            out = encoder(piece, cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.hidden)
    assert_close(torch.cat(parts, 1), whole.hidden, rms=2e-6)


masks = st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=3, max_size=3).map(
    lambda rows: torch.tensor(rows, dtype=torch.bool)
)


@cases(name=NAMES, direction=["causal", "bidirectional"], pooling=["mean", "last", "max", "attention"])
@settings(max_examples=5, deadline=None)
@given(mask=masks)
def test_padding_is_invisible_whatever_stands_in_it(name, direction, pooling, mask):
    encoder = small(name, direction=direction, pooling=pooling)
    tokens = data(3, 6, 3, requires_grad=True)
    x = torch.where(mask[..., None], tokens, torch.full_like(tokens, float("nan")))
    streaming = direction == "causal"
    out = encoder(x, attention_mask=mask, use_cache=streaming)
    assert not out.hidden[~mask].any() and torch.isfinite(out.hidden).all()
    weight, read = data(3, 6, 8, seed=1), data(3, 8, seed=2)
    loss = (out.hidden * weight).sum() + (out.embedding * read).sum()
    alone_loss, alones = 0, []
    for row in range(3):
        alone = encoder(tokens[row, mask[row]][None], use_cache=streaming)
        assert_close(out.hidden[row, mask[row]], alone.hidden[0], rms=TIGHT)
        assert_close(out.embedding[row], alone.embedding[0], rms=TIGHT)
        alone_loss = alone_loss + (alone.hidden[0] * weight[row, mask[row]]).sum()
        alone_loss = alone_loss + (alone.embedding[0] * read[row]).sum()
        alones.append(alone)
    if streaming:
        for got, *want in zip(*map(flat_states, [out.cache, *(alone.cache for alone in alones)])):
            assert_close(got, torch.cat(want), rms=TIGHT)
        assert out.cache.get_seq_length() == 6 and out.cache.lengths.tolist() == mask.sum(1).tolist()
    inputs = [tokens, *encoder.parameters()]
    got = torch.autograd.grad(loss, inputs, allow_unused=True)
    want = torch.autograd.grad(alone_loss, inputs, allow_unused=True)
    scale = max(float(w.abs().max()) for w in want if w is not None)
    for a, b in zip(got, want):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert torch.isfinite(a).all() and float((a - b).abs().max()) <= 1e-9 * max(scale, 1e-30)


@cases(name=NAMES, direction=["causal", "bidirectional"])
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_packed_equals_padded_equals_one_by_one(name, direction, lengths):
    encoder = small(name, direction=direction)
    rows = [data(n, 3, seed=i) for i, n in enumerate(lengths)]
    packed = torch.cat(rows)[None]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    streaming = direction == "causal"
    out = encoder(packed, cu_seqlens=offsets, use_cache=streaming)
    assert out.hidden.shape == (1, sum(lengths), 8) and out.embedding.shape == (len(lengths), 8)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))
    same = encoder(padded, lengths=lengths, use_cache=streaming)
    assert_close(torch.cat([same.hidden[i, :n] for i, n in enumerate(lengths)])[None], out.hidden, rms=TIGHT)
    assert_close(same.embedding, out.embedding, rms=TIGHT)
    for i, row in enumerate(rows):
        alone = encoder(row[None], use_cache=streaming)
        assert_close(out.hidden[0, offsets[i] : offsets[i + 1]], alone.hidden[0], rms=TIGHT)
        assert_close(out.embedding[i], alone.embedding[0], rms=TIGHT)
    if streaming:
        assert_same_cache(out.cache, same.cache)
        assert out.cache.lengths.tolist() == same.cache.lengths.tolist() == lengths
        more = data(len(lengths), 2, 3, seed=99)
        assert_close(encoder(more, cache=out.cache).hidden, encoder(more, cache=same.cache).hidden, rms=TIGHT)


@cases(name=NAMES)
def test_the_future_changes_nothing_before_it(name):
    encoder, x = small(name), data(1, 70, 3)
    changed = x.clone()
    changed[:, 66] += 1.0
    before, after = encoder(x).hidden, encoder(changed).hidden
    assert torch.equal(before[:, :64], after[:, :64])
    assert_close(after[:, 64:66], before[:, 64:66], rms=TIGHT)
    assert not torch.allclose(before[:, 66:], after[:, 66:])


@cases(name=NAMES)
def test_a_bidirectional_encoder_sees_the_future_and_the_past(name):
    encoder, x = small(name, direction="bidirectional"), data(1, 6, 3)
    for changed_at, seen_at in ((5, 0), (0, 5)):
        changed = x.clone()
        changed[:, changed_at] += 1.0
        assert not torch.allclose(encoder(changed).hidden[:, seen_at], encoder(x).hidden[:, seen_at], rtol=1e-9)


@cases(name=NAMES)
def test_swapped_directions_read_a_reversed_sequence_the_same(name):
    encoder, x = small(name, direction="bidirectional"), data(2, 5, 3)
    want = encoder(x, lengths=[5, 3]).hidden
    encoder.blocks, encoder.backward_blocks = encoder.backward_blocks, encoder.blocks
    turned = torch.stack([x[0].flip(0), torch.cat([x[1, :3].flip(0), x[1, 3:]])])
    got = encoder(turned, lengths=[5, 3]).hidden
    assert_close(got[0].flip(0), want[0], rms=TIGHT)
    assert_close(got[1, :3].flip(0), want[1, :3], rms=TIGHT)


@cases(name=NAMES, direction=["causal", "bidirectional"])
def test_permuting_the_batch_permutes_the_result(name, direction):
    encoder, x, order = small(name, direction=direction), data(4, 5, 3), torch.tensor([2, 0, 3, 1])
    lengths = torch.tensor([5, 1, 0, 3])
    out, turned = encoder(x, lengths=lengths), encoder(x[order], lengths=lengths[order])
    assert_close(turned.hidden, out.hidden[order], rms=TIGHT)
    assert_close(turned.embedding, out.embedding[order], rms=TIGHT)


@cases(name=NAMES)
def test_sessions_do_not_see_each_other(name):
    encoder = small(name)
    streams = [data(1, 12, 3, seed=seed) for seed in range(2)]

    def alone(x):
        cache, outputs = None, []
        for t in range(x.shape[1]):
            out = encoder(x[:, t : t + 1], cache=cache, use_cache=True)
            cache = out.cache
            outputs.append(out.hidden)
        return torch.cat(outputs, 1)

    with torch.no_grad():
        want = [alone(x) for x in streams]
        caches, mixed = [None, None], [[], []]
        for t in range(12):
            for i, x in enumerate(streams):
                out = encoder(x[:, t : t + 1], cache=caches[i], use_cache=True)
                caches[i] = out.cache
                mixed[i].append(out.hidden)
        for got, expected in zip(mixed, want):
            assert torch.equal(torch.cat(got, 1), expected)
    results = [None, None]

    def run(i):
        with torch.no_grad():
            results[i] = alone(streams[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], want[0]) and torch.equal(results[1], want[1])


@cases(name=NAMES)
def test_stacked_sessions_equal_sessions_alone(name):
    encoder = small(name)
    streams = [data(1, n, 3, seed=n) for n in (2, 5)]
    more = data(3, 2, 3, seed=9)
    caches = [encoder(x, use_cache=True).cache for x in streams]
    out = encoder(more, cache=Cache.stack([*caches, Cache()]))
    for i, (x, cache) in enumerate(zip([*streams, data(1, 0, 3)], out.cache.unstack())):
        want = encoder(torch.cat([x, more[i : i + 1]], 1), use_cache=True)
        assert_close(out.hidden[i], want.hidden[0, x.shape[1] :], rms=TIGHT)
        assert_same_cache(cache, want.cache)


@cases(name=NAMES, vocab_size=[None, 7])
def test_every_parameter_learns(name, vocab_size):
    for direction in ("causal", "bidirectional"):
        extra = {} if vocab_size is None else dict(vocab_size=vocab_size)
        encoder = small(name, direction=direction, pooling="attention", **extra).train()
        x = data(2, 7, 3) if vocab_size is None else torch.arange(14).view(2, 7) % vocab_size
        (encoder(x, lengths=[7, 4]).embedding * data(2, 8, seed=5)).sum().backward()
        still = [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still


@cases(name=NAMES)
def test_gradients_flow_through_a_cache(name):
    encoder, x = small(name), data(1, 6, 3, requires_grad=True)
    weight = data(1, 6, 8, seed=4)
    (want,) = torch.autograd.grad((encoder(x).hidden * weight).sum(), x)
    first = encoder(x[:, :4], use_cache=True)
    second = encoder(x[:, 4:], cache=first.cache)
    (got,) = torch.autograd.grad((torch.cat([first.hidden, second.hidden], 1) * weight).sum(), x)
    assert_close(got, want, rms=1e-9)


@cases(name=NAMES, dtype=[torch.bfloat16, torch.float16], seed=range(3))
def test_half_precision_follows_float64(name, dtype, seed):
    """One layer with heads of 16: the norm behind tiny heads multiplies any rounding without a bound."""
    skip_without_products(dtype)
    sizes = dict(hidden_size=32, num_layers=1, **({"head_dim": 16} if name in HEADED else {}))
    half, wide, x = small(name, dtype, seed, **sizes), small(name, **sizes), data(2, 20, 3, seed=seed).to(dtype)
    wide.load_state_dict(half.state_dict())  # the same rounded weights: what differs is the arithmetic
    want = wide(x.double(), lengths=[20, 11])
    got = half(x, lengths=[20, 11])
    assert got.hidden.dtype == got.embedding.dtype == dtype
    rms = 3e-2 if dtype == torch.bfloat16 else 4e-3
    assert_close(got.hidden.double(), want.hidden, rms=rms, largest=5 * rms)
    assert_close(got.embedding.double(), want.embedding, rms=rms, largest=5 * rms)


@cases(name=NAMES)
def test_the_same_seed_builds_the_same_encoder(name):
    config = dict(name=name, input_size=3, hidden_size=8)
    torch.manual_seed(4)
    first = build_encoder(config)
    torch.manual_seed(4)
    second = build_encoder(config)
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)


@cases(name=NAMES)
def test_an_encoder_is_built_on_meta_and_in_any_dtype(name):
    config = dict(name=name, input_size=3, hidden_size=8, pooling="attention", direction="bidirectional")
    shadow = build_encoder(config, device="meta", dtype=torch.float64)
    real = build_encoder(config, dtype=torch.float64)
    assert all(p.device.type == "meta" for p in shadow.parameters())
    described = [[(key, p.shape, p.dtype) for key, p in e.named_parameters()] for e in (shadow, real)]
    assert described[0] == described[1]
    assert {p.dtype for p in real.parameters()} == {torch.float64}

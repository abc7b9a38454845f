"""Caches for tests, and a comparison of two."""

import torch

from myfla.models.utils import Cache


def filled(batch=2, layers=2, offset=5, lengths=None, seed=0, value=4):
    """A cache of `layers` layers with random recurrent and convolution states."""
    draw = torch.Generator().manual_seed(seed)
    cache = Cache()
    for i in range(layers):
        state = torch.randn(batch, 2, 3, value, generator=draw)
        conv = tuple(torch.randn(batch, size, 4, generator=draw) for size in (6, 6, 8))
        cache.update(recurrent_state=state, conv_state=conv, layer_idx=i, offset=offset, lengths=lengths)
    return cache


def advance(cache, offset, lengths, layers=None):
    """Put states in that depend, row by row, on those before."""
    for i in range(layers or len(cache)):
        before = cache[i]["recurrent_state"] if i < len(cache) else torch.ones(2, 2, 3, 4)
        cache.update(recurrent_state=before * 0.5 + 1, layer_idx=i, offset=offset, lengths=lengths)


def same(a, b):
    """Whether two caches hold the same layers, states and counts, bit for bit."""
    assert len(a) == len(b) and a.fingerprint == b.fingerprint
    for i, (left, right) in enumerate(zip(a, b)):
        assert a.get_seq_length(i) == b.get_seq_length(i), (i, a.get_seq_length(i), b.get_seq_length(i))
        if left is None or right is None:
            assert left is None and right is None
            continue
        assert torch.equal(a.get_lengths(i), b.get_lengths(i)), (i, a.get_lengths(i), b.get_lengths(i))
        for field in left:
            parts = [x if isinstance(x, tuple) else (x,) for x in (left[field], right[field])]
            assert len(parts[0]) == len(parts[1])
            for x, y in zip(*parts):
                assert (x is None and y is None) or (x.dtype == y.dtype and torch.equal(x, y)), (i, field)
    return True

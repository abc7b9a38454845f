"""Streams without end: fed in pieces, neither the error nor the memory grows. The slow form has 100 000 tokens."""

import gc
import itertools
import math

import pytest
import torch

from gdn_layer import build
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, rms_error
from state_subjects import ENCODERS, LAYERS, OPS, states, wide_subject

DECAYS = {"none": 0.0, "mild": 1.0, "strong": 100.0}
RMS = 2e-6


def tensor_bytes():
    """Bytes of all tensors that Python can still reach; views of one memory count once."""
    gc.collect()
    found = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type == "cpu"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def pieces(tokens):
    """Uneven sizes, one-token and empty ones among them."""
    sizes, left = itertools.cycle([977, 1, 256, 0, 1500, 3]), tokens
    while left:
        size = min(next(sizes), left)
        yield size
        left -= size


def long_op(name, decay, tokens):
    op, truth = OPS[name], OPS[name.split("_")[0] + "_recurrent"]
    inputs = op.inputs(1, tokens, decay=DECAYS[decay])
    want, want_state = truth({key: t.double() for key, t in inputs.items()})
    got, state, start = torch.empty(want.shape), None, 0
    for size in pieces(tokens):
        part = slice(start, start + size)
        got[:, part], state = op({key: t[:, part] for key, t in inputs.items()}, state)
        start += size
    assert_close(got, want, rms=RMS)
    assert_close(state, want_state, rms=RMS)
    tenth = tokens // 10
    early, late = (rms_error(got[:, at], want[:, at]) for at in (slice(tenth), slice(-tenth, None)))
    assert late <= 2 * early + 1e-8, (early, late)


def with_decay(layer, decay):
    """Make every head decay so: nothing, as it is, or 100 and more a step."""
    with torch.no_grad():
        layer.A_log.fill_(-math.inf) if decay == "none" else layer.A_log.fill_(math.log(200.0))
        layer.dt_bias.fill_(1.0)


def long_module(subject, wide, tokens, keep=8, rms=RMS):
    """A float32 module fed in pieces against a float64 one that sees everything at once."""
    wide.module.load_state_dict(subject.module.state_dict())
    x = subject.data(1, tokens)
    with torch.no_grad():
        want, whole = wide(x.double())
        cache, start, sizes, errors, total = None, 0, [], [], 0.0
        for i, size in enumerate(pieces(tokens)):
            y, cache = subject(x[:, start : start + size], cache)
            if size > 100:
                errors.append(rms_error(y, want[:, start : start + size]))
            total += float((y.double() - want[:, start : start + size]).square().sum())
            start += size
            if i % keep == 0 and i > 5:  # every size has come once: buffers that are kept have their full size
                del y
                sizes.append((cache.nbytes, tensor_bytes()))
        _, at_once = subject(x)
    assert total**0.5 <= rms * float(want.norm()), total**0.5 / float(want.norm())
    for got, once, state in zip(states(cache), states(at_once), states(whole)):
        # The state of a layer behind others has their rounding in it, in one call as well as in many.
        assert rms_error(got, state) <= max(rms, 2 * rms_error(once, state))
    assert len(sizes) > 1 and len(set(sizes)) == 1, sizes
    fifth = max(1, len(errors) // 5)
    early, late = (sum(part) / fifth for part in (errors[:fifth], errors[-fifth:]))
    assert late <= 2 * early + 1e-8, (early, late)


@cases(name=list(OPS), decay=list(DECAYS))
def test_pieces_of_a_stream_stay_exact(name, decay):
    long_op(name, decay, 1500)


@pytest.mark.slow
@cases(name=list(OPS), decay=list(DECAYS))
def test_pieces_of_100_000_tokens_stay_exact(name, decay):
    long_op(name, decay, 100_000)


@cases(name=["gdn", "rwkv7_later", *ENCODERS])
def test_streams_of_layers_and_encoders_grow_in_nothing(name):
    made = LAYERS.get(name) or (lambda dtype: wide_subject(name, dtype))
    long_module(made(torch.float32), made(torch.float64), 6000, keep=2)


@pytest.mark.slow
@cases(name=[*LAYERS, *ENCODERS])
def test_100_000_tokens_through_layers_and_encoders_grow_in_nothing(name):
    made = LAYERS.get(name) or (lambda dtype: wide_subject(name, dtype))
    long_module(made(torch.float32), made(torch.float64), 100_000)


@pytest.mark.slow
@cases(decay=["none", "strong"])
def test_100_000_tokens_through_a_layer_of_extreme_decay(decay):
    subject, wide = LAYERS["gdn"](torch.float32), LAYERS["gdn"](torch.float64)
    with_decay(subject.module, decay)
    long_module(subject, wide, 100_000)


def test_a_cache_of_a_stream_has_a_fixed_size():
    layer, cache, sizes = build(torch.float32).eval(), Cache(), set()
    with torch.no_grad():
        for size in (1, 70, 1, 0, 300, 5):
            layer(torch.randn(2, size, 12), past_key_values=cache, use_cache=True)
            sizes.add(cache.nbytes)
    assert len(sizes) == 1 and cache.get_seq_length() == 377

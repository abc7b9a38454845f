"""The front end that shortens sequences: what it computes, what it never reads, and where it is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.encoder import GatedDeltaNetEncoderConfig
from cfg.validation import ConfigError
from encoders import build_encoder, load_encoder
from encoders.batch import make_layout
from encoders.stem import Stem
from myfla.testing import assert_close, cases, raises
from small_encoders import NAMES, small

STEMS = [dict(stem="patch", stem_stride=3), dict(stem="conv", stem_stride=4, stem_kernel=5),
         dict(stem="conv", stem_stride=1, stem_kernel=3), dict(stem="conv", stem_stride=2, stem_kernel=2)]
TIGHT = 1e-10


def by_hand(stem, x):
    """One sequence ``[L, D]``, window by window."""
    for i, conv in enumerate(stem.convs):
        stride, kernel = conv.stride[0], conv.kernel_size[0]
        rows = []
        for j in range(math.ceil(len(x) / stride)):
            row = conv.bias.clone()
            for tap in range(kernel):
                at = (j + 1) * stride - kernel + tap
                if 0 <= at < len(x):
                    row = row + conv.weight[:, :, tap] @ x[at]
            rows.append(row)
        x = torch.stack(rows)
        x = F.gelu(stem.norms[i](x)) if len(stem.norms) else x
    return x


@cases(how=STEMS, length=[1, 2, 3, 4, 7, 12])
def test_it_is_a_causal_strided_convolution(how, length):
    stem, x = small("gated_deltanet", **how).input, torch.randn(1, length, 3, dtype=torch.float64)
    hidden, layout = stem(x, make_layout(x))
    assert_close(hidden[0], by_hand(stem, x[0]), rms=TIGHT)
    assert layout.lengths.tolist() == [math.ceil(length / how["stem_stride"])]


@cases(name=NAMES, how=STEMS, direction=["causal", "bidirectional"])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4), garbage=st.sampled_from([0.0, math.nan, math.inf]))
def test_packed_equals_padded_equals_one_by_one(name, how, direction, lengths, garbage):
    encoder = small(name, direction=direction, **how)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in lengths]
    x = torch.full((len(lengths), 11, 3), garbage, dtype=torch.float64)
    mask = torch.zeros(len(lengths), 11, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        x[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    padded, packed = encoder(x, lengths=lengths), encoder(torch.cat(sequences)[None], cu_seqlens=offsets)
    left = encoder(torch.stack([row.roll(11 - n, 0) for row, n in zip(x, lengths)]),
                   attention_mask=torch.stack([row.roll(11 - n, 0) for row, n in zip(mask, lengths)]))
    steps = [math.ceil(n / how["stem_stride"]) for n in lengths]
    assert padded.lengths.tolist() == packed.lengths.tolist() == left.lengths.tolist() == steps
    assert padded.hidden.shape[1] == max(steps)
    at = 0
    for row, sequence in enumerate(sequences):
        alone = encoder(sequence[None])
        assert_close(alone.embedding[0], padded.embedding[row], rms=TIGHT)
        assert_close(alone.hidden[0], padded.hidden[row, : steps[row]], rms=TIGHT)
        assert_close(alone.hidden[0], packed.hidden[0, at : at + steps[row]], rms=TIGHT)
        assert not padded.hidden[row, steps[row] :].any()
        at += steps[row]
    assert_close(packed.embedding, padded.embedding, rms=TIGHT)
    assert_close(left.embedding, padded.embedding, rms=TIGHT)


@cases(how=STEMS)
def test_pads_have_no_gradient_and_tokens_have_that_of_finite_differences(how):
    encoder = small("gated_deltanet", **how)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x, lengths=[5, 3]).embedding, (x,))
    encoder(x, lengths=[5, 3]).embedding.sum().backward()
    assert x.grad[0].abs().min() > 0 and not x.grad[1, 3:].any()


@cases(how=STEMS)
def test_it_is_causal(how):
    encoder, x = small("rwkv7", **how), torch.randn(1, 12, 3, dtype=torch.float64)
    other, stride = x.clone(), how["stem_stride"]
    other[:, 2 * stride :] += 1.0
    assert torch.equal(encoder(x).hidden[:, :2], encoder(other).hidden[:, :2])


def test_lengths_tell_the_steps_of_encoders_without_a_stem_too():
    encoder, x = small("gated_deltanet"), torch.randn(2, 5, 3, dtype=torch.float64)
    assert encoder(x).lengths.tolist() == [5, 5] and encoder(x, lengths=[5, 2]).lengths.tolist() == [5, 2]


def test_it_is_saved_and_comes_back(tmp_path):
    encoder = small("lstm", torch.float32, **STEMS[1])
    encoder.save(tmp_path / "out")
    x = torch.randn(2, 9, 3)
    assert torch.equal(load_encoder(tmp_path / "out")(x).embedding, encoder(x).embedding)


def test_a_stream_is_refused_with_the_reason():
    encoder = build_encoder(GatedDeltaNetEncoderConfig(input_size=3, stem="patch"))
    assert encoder.config.needs_end == "encoder.stem=patch"
    with raises(ValueError, "encoder: cache cannot be used with stem='patch'",
                "the end of a sequence closes its last step; build it with encoder.stem=none"):
        encoder(torch.randn(1, 8, 3), use_cache=True)


def test_data_that_does_not_fit_is_refused():
    encoder = build_encoder(GatedDeltaNetEncoderConfig(input_size=3, stem="conv"))
    with raises(ValueError, "encoder: x must have shape [B, T, 3]"):
        encoder(torch.randn(1, 8, 4))
    with raises(ValueError, "encoder: x must have the encoder's dtype torch.float32"):
        encoder(torch.randn(1, 8, 3, dtype=torch.float64))


@cases(case=[
    (dict(stem="cnov"), "encoder.stem must be one of none, patch, conv; got 'cnov'; did you mean 'conv'?"),
    (dict(stem="conv", stem_stride=6),
     "encoder.stem_stride must be a power of two with encoder.stem=conv; got 6; use 4 or 8"),
    (dict(stem="conv", stem_kernel=1), "encoder.stem_kernel must be at least 2, the stride of each convolution; got 1"),
    (dict(stem="patch", input_size=None, vocab_size=5),
     "encoder.stem must be none for token ids (encoder.vocab_size is set); got 'patch'"),
])
def test_settings_that_do_not_fit_are_refused_by_name(case):
    changes, message = case
    with raises(ConfigError, message):
        GatedDeltaNetEncoderConfig(**{"input_size": 3, **changes})


def test_every_size_of_batch_and_length_is_fine():
    stem = Stem(3, 8, [2, 2], 4)
    for shape in [(0, 5, 3), (2, 0, 3), (0, 0, 3)]:
        x = torch.randn(shape)
        hidden, layout = stem(x, make_layout(x))
        assert hidden.shape == (shape[0], math.ceil(shape[1] / 4), 8) and len(layout.lengths) == shape[0]


@pytest.mark.filterwarnings("ignore")  # of torch.jit.trace, which tells what it writes down as fixed
@cases(stem=["conv", "patch"], how=["lengths", "attention_mask"])
def test_a_recorded_stem_gives_what_an_eager_one_does(stem, how):
    func = pytest.importorskip("torch.func")
    encoder = small("gated_deltanet", stem=stem, stem_stride=2)
    x, lengths = torch.randn(3, 7, 3, dtype=torch.float64), torch.tensor([5, 0, 7])
    mask = torch.arange(7) >= 7 - lengths[:, None]
    layout = {"lengths": lengths} if how == "lengths" else {"attention_mask": mask}
    want = encoder(x, **layout)
    gradient = func.grad(lambda x: encoder(x, **layout).embedding.square().sum())(x)
    leaf = x.clone().requires_grad_()
    encoder(leaf, **layout).embedding.square().sum().backward()
    assert_close(gradient, leaf.grad, rms=1e-10)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    traced = torch.jit.trace(lambda x: encoder(x, **layout).embedding, (x,), check_trace=False)
    assert_close(traced(x), want.embedding, rms=1e-10)

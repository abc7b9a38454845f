"""The stems: what they compute, what they never read, and where they are refused."""

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
from encoders.stem import InceptionStem, Stem
from myfla.testing import assert_close, cases, raises
from small_encoders import NAMES, small

STEMS = [dict(stem="patch", stem_stride=3), dict(stem="conv", stem_stride=4, stem_kernel=5),
         dict(stem="conv", stem_stride=1, stem_kernel=3), dict(stem="conv", stem_stride=2, stem_kernel=2)]
INCEPTION = [dict(stem="inception", stem_stride=1, stem_kernel=5),
             dict(stem="inception", direction="bidirectional", stem_stride=1),
             dict(stem="inception", direction="bidirectional", stem_stride=2, stem_kernel=8),
             dict(stem="inception", direction="bidirectional"),
             dict(stem="inception", direction="bidirectional", stem_stride=8, stem_kernel=5)]
EVERY = [*({**how, "direction": way} for how in STEMS for way in ("causal", "bidirectional")), *INCEPTION]
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


def bent(stem, seed=0):
    """The stem with running statistics as training leaves them; those of a new one are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for block in stem.blocks:
        block.norm.running_mean.copy_(torch.randn(block.output_size, generator=generator))
        block.norm.running_var.copy_(0.5 + torch.rand(block.output_size, generator=generator))
    return stem


def inception_by_hand(stem, x):
    """One sequence ``[L, D]``, window by window."""

    def tap(conv, x, step, kernel):
        first = step - (kernel - 1) if stem.causal else step - (kernel - 1) // 2
        return [(i, x[first + i]) for i in range(kernel) if 0 <= first + i < len(x)]

    for block in stem.blocks:
        rows, narrow = [], x if isinstance(block.narrow, torch.nn.Identity) else x @ block.narrow.weight[:, :, 0].T
        for step in range(0, len(x), block.stride):
            parts = [sum(conv.weight[:, :, i] @ value for i, value in tap(conv, narrow, step, conv.kernel_size[0]))
                     for conv in block.convs]
            seen = [value for _, value in tap(None, x, step, 3)]
            seen += [torch.zeros_like(x[0])] * (len(seen) < 3)
            parts.append(block.pooled.weight[:, :, 0] @ torch.stack(seen).max(0).values)
            norm, y = block.norm, torch.cat(parts)
            y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            rows.append(F.relu(y + (x[step] if block.across is None else block.across.weight[:, :, 0] @ x[step])))
        x = torch.stack(rows)
    return x


@cases(how=INCEPTION, length=[1, 2, 3, 7, 12, 50])
def test_inception_is_windows_of_three_widths_and_a_largest_value(how, length):
    stem, x = bent(small("gated_deltanet", **how).input), torch.randn(1, length, 3, dtype=torch.float64)
    widths = [[conv.kernel_size[0] for conv in block.convs] for block in stem.blocks]
    widest = how.get("stem_kernel", 19)
    assert widths == [[widest, (widest - 1) // 2, (widest - 1) // 4]] * 3
    hidden, layout = stem(x, make_layout(x))
    assert_close(hidden[0], inception_by_hand(stem, x[0]), rms=TIGHT)
    assert layout.lengths.tolist() == [math.ceil(length / stem.stride)]


@cases(name=NAMES, how=EVERY)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4), garbage=st.sampled_from([0.0, math.nan, math.inf]))
def test_packed_equals_padded_equals_one_by_one(name, how, lengths, garbage):
    encoder = small(name, **how)
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
    steps = [math.ceil(n / encoder.config.shortening) for n in lengths]
    assert padded.lengths.tolist() == packed.lengths.tolist() == left.lengths.tolist() == steps
    kept = how["stem"] == "inception" and encoder.config.shortening == 1  # where they were
    assert padded.hidden.shape[1] == (11 if kept else max(steps))
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


@cases(how=EVERY)
def test_pads_have_no_gradient_and_tokens_have_that_of_finite_differences(how):
    encoder = small("gated_deltanet", **how)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encoder(x, lengths=[5, 3]).embedding, (x,))
    encoder(x, lengths=[5, 3]).embedding.sum().backward()
    assert x.grad[0].abs().min() > 0 and not x.grad[1, 3:].any()


@cases(how=[*STEMS, INCEPTION[0]])
def test_it_is_causal(how):
    encoder, x = small("rwkv7", **how), torch.randn(1, 12, 3, dtype=torch.float64)
    other, stride = x.clone(), how["stem_stride"]
    other[:, 2 * stride :] += 1.0
    assert torch.equal(encoder(x).hidden[:, :2], encoder(other).hidden[:, :2])


def test_lengths_tell_the_steps_of_encoders_without_a_stem_too():
    encoder, x = small("gated_deltanet"), torch.randn(2, 5, 3, dtype=torch.float64)
    assert encoder(x).lengths.tolist() == [5, 5] and encoder(x, lengths=[5, 2]).lengths.tolist() == [5, 2]


@cases(how=[STEMS[1], *INCEPTION])
def test_it_is_saved_and_comes_back(how, tmp_path):
    encoder = small("lstm", torch.float32, **how)
    if how["stem"] == "inception":
        bent(encoder.input)
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
    (dict(stem="cnov"),
     "encoder.stem must be one of none, patch, conv, inception, auto; got 'cnov'; did you mean 'conv'?"),
    (dict(stem="inception", direction="bidirectional", stem_stride=3),
     "encoder.stem_stride must be 1, 2, 4 or 8 with encoder.stem=inception; got 3"),
    (dict(stem="inception", stem_stride=4),
     "encoder.stem_stride must be 1 with encoder.stem=inception and encoder.direction=causal; got 4; "
     "use encoder.direction=bidirectional to shorten whole sequences"),
    (dict(stem="inception", hidden_size=3),
     "encoder.hidden_size must be at least 4 with encoder.stem=inception: each of its four branches has a share; "
     "got 3"),
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


@cases(form=["strided", "centred", "causal"])
def test_every_size_of_batch_and_length_is_fine(form):
    stride = 1 if form == "causal" else 4
    stem = Stem(3, 8, [2, 2], 4) if form == "strided" else InceptionStem(3, 8, stride, 9, form == "causal")
    for shape in [(0, 5, 3), (2, 0, 3), (0, 0, 3)]:
        x = torch.randn(shape)
        hidden, layout = stem(x, make_layout(x))
        assert hidden.shape == (shape[0], math.ceil(shape[1] / stride), 8) and len(layout.lengths) == shape[0]


@pytest.mark.filterwarnings("ignore")  # of torch.jit.trace, which tells what it writes down as fixed
@cases(stem=["conv", "patch", "inception", "causal inception"], how=["lengths", "attention_mask"])
def test_a_recorded_stem_gives_what_an_eager_one_does(stem, how):
    func = pytest.importorskip("torch.func")
    causal = stem != "inception"
    encoder = small("gated_deltanet", stem=stem.split()[-1], stem_stride=1 if " " in stem else 2,
                    direction="causal" if causal else "bidirectional")
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


@cases(causal=[False, True])
def test_statistics_are_those_of_real_steps(causal):
    """Training on padded sequences is training on packed ones, and both are the formula over all real steps."""
    stems = [InceptionStem(3, 8, 1 if causal else 2, 9, causal, dtype=torch.float64) for _ in range(2)]
    stems[1].load_state_dict(stems[0].state_dict())
    lengths, x = torch.tensor([7, 0, 12, 3]), torch.randn(4, 12, 3, dtype=torch.float64)
    x[torch.arange(12) >= lengths[:, None]] = math.nan
    tokens = torch.cat([row[:n] for row, n in zip(x, lengths)])[None]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    padded, packed = make_layout(x, lengths), make_layout(tokens, cu_seqlens=ends)
    a = stems[0](padded.pack(x), padded)[0]
    b = stems[1](tokens, packed)[0]
    assert_close(a, b, rms=TIGHT)
    block, seen = stems[0].blocks[0], []
    block.norm = torch.nn.Identity()
    block.norm.forward = lambda y, real: seen.append(y.transpose(1, 2)[real]) or y
    stems[0](padded.pack(x), padded)
    got, (steps,) = stems[1].blocks[0].norm, seen
    assert len(steps) == 22
    assert_close(got.running_mean, 0.1 * steps.mean(0), rms=TIGHT)
    assert_close(got.running_var, 0.9 + 0.1 * steps.var(0), rms=TIGHT)
    stems[0].blocks[0].norm = got


@cases(lengths=[[1], [0, 1, 0], [0, 0]])
def test_a_batch_without_a_variance_is_normalised_by_what_was_seen(lengths):
    stem = bent(InceptionStem(3, 8, 4, 9, causal=False, dtype=torch.float64))
    x = torch.randn(len(lengths), 2, 3, dtype=torch.float64)
    layout, before = make_layout(x, lengths), {name: t.clone() for name, t in stem.state_dict().items()}
    trained = stem(layout.pack(x), layout)[0]
    assert all(torch.equal(t, before[name]) for name, t in stem.state_dict().items())
    assert_close(trained, stem.eval()(layout.pack(x), layout)[0], rms=TIGHT)

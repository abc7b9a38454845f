"""NaN and Inf stay where they are; extreme but finite values give finite, right numbers and gradients."""

import pytest
import torch

import gdn_layer
import rwkv7_layers
from encoders import build_encoder
from encoders.finite import NotFiniteError, check_finite
from folders import saved
from myfla.layers import GatedDeltaNet
from myfla.models.utils import Cache
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.testing import assert_close, cases, raises
from small_encoders import small
from state_subjects import ENCODERS, EVERY, LAYERS, OPS, op_state, states

BAD = [float("nan"), float("inf"), float("-inf")]
CHUNK = 64  # the largest chunk that any form uses: how far back a NaN may be felt


def _spoil(given, name, row, t, bad):
    given = {key: value.clone() for key, value in given.items()}
    given[name][row, t].view(-1)[0] = bad
    return given


TENSORS = [(op, name) for op, subject in EVERY.items() for name in subject.inputs(1, 1)]


@cases(tensor=TENSORS, bad=BAD)
def test_a_bad_token_spoils_neither_other_rows_nor_the_past(tensor, bad):
    """Recurrent forms: nothing before it. Chunk forms: nothing before its chunk. Never another row."""
    (op, name), t = tensor, 150
    subject = EVERY[op]
    given, state = subject.inputs(3, 200), op_state(op, 3)
    clean, clean_state = subject(given, state)
    got, got_state = subject(_spoil(given, name, 1, t, bad), state)
    others = [0, 2]
    assert torch.equal(got[others], clean[others]) and torch.equal(got_state[others], clean_state[others])
    start = t if subject.exact else t - t % CHUNK
    assert torch.equal(got[1, :start], clean[1, :start])
    assert not torch.equal(got[1, t:], clean[1, t:]) or not torch.equal(got_state[1], clean_state[1])


@cases(op=list(EVERY), bad=BAD)
def test_a_bad_sequence_spoils_no_other_of_the_packed_ones(op, bad):
    subject, cu = EVERY[op], [0, 70, 75, 75, 130]
    given, state = subject.inputs(1, 130), op_state(op, 4)
    clean, clean_state = subject(given, state, torch.tensor(cu))
    for name in given:
        got, got_state = subject(_spoil(given, name, 0, 72, bad), state, torch.tensor(cu))
        for first, end, row in zip(cu[:-1], cu[1:], range(4)):
            if row != 1:
                assert torch.equal(got[0, first:end], clean[0, first:end]), (name, row)
                assert torch.equal(got_state[row], clean_state[row]), (name, row)


@cases(name=["gated_deltanet", "rwkv7", "gru"], bad=BAD, changes=[
    dict(stem="conv", stem_stride=2), dict(stem="patch", stem_stride=3, pooling="attention"),
    dict(stem="inception", stem_kernel=5), dict(stem="inception", direction="bidirectional"),
    dict(direction="bidirectional", pooling="max")])
def test_a_bad_row_spoils_no_other_with_stems_and_in_both_directions(name, bad, changes):
    encoder = small(name, **changes)
    x = torch.randn(3, 12, 3, dtype=torch.float64)
    clean = encoder(x)
    x[1, 7, 0] = bad
    got = encoder(x)
    for a, b in zip(got[:2], clean[:2]):
        assert torch.equal(a[[0, 2]], b[[0, 2]]) and not torch.isfinite(a[1]).all()


@cases(kind=["gated_deltanet", "rwkv7"], bad=BAD)
def test_a_bad_row_spoils_no_other_of_an_encoder_from_an_official_checkpoint(kind, bad, tmp_path):
    saved(tmp_path, kind)
    encoder = build_encoder({"name": kind, "input_size": 3, "pretrained": str(tmp_path)}).eval()
    x = torch.randn(3, 9, 3)
    clean = encoder(x).embedding
    x[1, 4, 2] = bad
    got = encoder(x).embedding
    assert torch.equal(got[[0, 2]], clean[[0, 2]]) and not torch.isfinite(got[1]).all()


@cases(subject=[*LAYERS, *ENCODERS], bad=BAD)
def test_a_bad_row_spoils_no_other_of_a_batch(subject, bad):
    made = {**LAYERS, **ENCODERS}[subject](torch.float64)
    x = made.data(3, 20)
    clean, clean_cache = made(x)
    x[1, 12, 0] = bad
    got, cache = made(x)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert not torch.isfinite(got[1, 12:]).all()
    for a, b in zip(states(cache, [0, 2]), states(clean_cache, [0, 2])):
        assert torch.equal(a, b)


@cases(subject=[*LAYERS, *ENCODERS], in_place=[False, True])
@torch.no_grad()
def test_a_bad_row_of_a_cache_spoils_no_other(subject, in_place):
    made = {**LAYERS, **ENCODERS}[subject](torch.float64)
    x = made.data(3, 9)
    _, cache = made(x)
    clean, _ = made(x, cache)
    for state in states(cache):
        state[1] = float("nan")
    got, _ = made.call(x, cache.in_place(), None, None) if in_place else made(x, cache)
    assert torch.equal(got[[0, 2]], clean[[0, 2]]) and not torch.isfinite(got[1]).all()


DECAYING = [op for op, subject in EVERY.items() if {"g", "w"} & set(subject.inputs(1, 1))]


@cases(op=DECAYING, value=[0.0, -1e-6, -40.0, -100.0, float("-inf")], grad=[False, True])
def test_one_decay_everywhere_is_right(op, value, grad):
    """Against the same form in float64: outputs, states, and finite gradients of every input."""
    decay = "w" if op.startswith("rwkv7") else "g"

    def run(dtype):
        given = EVERY[op].inputs(2, 150, dtype)
        given[decay] = torch.full_like(given[decay], value)
        given = {name: t.requires_grad_(grad) for name, t in given.items()}
        state = op_state(op, 2, dtype).requires_grad_(grad)
        o, final = EVERY[op](given, state)
        return o, final, {**given, "state": state}

    o, final, given = run(torch.float32)
    want, want_final, wanted = run(torch.float64)
    assert_close(o, want, rms=5e-6, name="o")
    assert_close(final, want_final, rms=5e-6, name="state")
    if grad:
        for out, end, _leaves in ((o, final, given), (want, want_final, wanted)):
            (out.square().sum() + end.square().sum()).backward()
        for name in given:
            assert torch.isfinite(given[name].grad).all(), name
            # Of decays that forget everything, some gradients are rounding, or too small for float32.
            if name != decay and wanted[name].grad.abs().max() > 1e-30:
                assert_close(given[name].grad, wanted[name].grad, rms=1e-5, name=f"d{name}")


@cases(A_log=[-30.0, 5.0, 12.0, 80.0], tokens=[1, 70])
def test_any_decay_rate_gives_finite_outputs_and_gradients(A_log, tokens):
    """``exp(A_log)`` from 1e-13 to overflow."""
    layer = gdn_layer.build(torch.float32)
    with torch.no_grad():
        layer.A_log.fill_(A_log)
    x = gdn_layer.inputs(2, tokens, torch.float32).requires_grad_()
    cache = Cache()
    y, _, _ = layer(x, past_key_values=cache, use_cache=True)
    y.square().sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert torch.isfinite(cache[0]["recurrent_state"]).all()
    for name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        again, _, _ = layer.eval()(x)
    assert_close(again, y, rms=1e-5)


@cases(bias=[-1e4, -30.0, 30.0, 1e4], tokens=[1, 70])
def test_any_decay_bias_of_rwkv7_gives_finite_outputs_and_gradients(bias, tokens):
    """From no forgetting at all to the fastest, ``exp(-exp(-0.5))`` a step."""
    layer = rwkv7_layers.build(0, dtype=torch.float32)
    with torch.no_grad():
        layer.w_lora.lora[2].bias.fill_(bias)
    x = torch.randn(2, tokens, 24, requires_grad=True)
    y = layer(x)[0]
    y.square().sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        assert_close(layer.eval()(x)[0], y, rms=1e-5)


@cases(form=[chunk_gated_delta_rule, fused_recurrent_gated_delta_rule], zero=["k", "q", "both"])
def test_zero_keys_and_queries_have_finite_gradients(form, zero):
    given = OPS["gdn_chunk"].inputs(1, 70)
    for name in ("k", "q"):
        if zero in (name, "both"):
            given[name][:, ::3] = 0
    given = {name: t.requires_grad_() for name, t in given.items()}
    o, _ = form(**given, use_qk_l2norm_in_kernel=True)
    o.sum().backward()
    for name, t in given.items():
        assert torch.isfinite(t.grad).all() and t.grad.abs().max() <= 1e4, name


@cases(scale=[1e-30, 1e-8, 1e8, 1e15])
def test_inputs_of_any_size_train_a_layer(scale):
    layer = GatedDeltaNet(hidden_size=16, head_dim=8, num_heads=2)
    x = (scale * torch.randn(2, 40, 16)).requires_grad_()
    y = layer(x)[0]
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


# ---- finding where it began ------------------------------------------------------------------------------------------


@cases(name=["gated_deltanet", "rwkv7", "gru"])
def test_a_check_names_layer_row_and_step(name):
    encoder = small(name)
    x = torch.randn(3, 12, 3, dtype=torch.float64)
    with check_finite(encoder):
        want = encoder(x).embedding
    x[1, 7] = float("nan")
    with raises(NotFiniteError, "check_finite", "the input of the encoder", "row 1", "step 7", "nan"), \
            check_finite(encoder):
        encoder(x)
    x[1, 7] = 0
    with torch.no_grad():
        next(encoder.blocks[1].parameters()).fill_(float("inf"))
    with raises(NotFiniteError, "blocks.1", "row 0", "step 0"), check_finite(encoder):
        encoder(x)
    assert torch.isfinite(want).all()
    encoder(x)  # nothing is left behind


def test_a_check_reads_packed_sequences_and_gives_real_steps():
    encoder = small("gated_deltanet")
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    x[0, 6, 1] = float("-inf")
    with raises(NotFiniteError, "sequence 1", "step 2", "-inf"), check_finite(encoder):
        encoder(x, cu_seqlens=torch.tensor([0, 4, 9]))


def test_a_check_does_not_mind_what_pads_hold():
    encoder = small("rwkv7")
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    x[1, 3:] = float("nan")
    with check_finite(encoder):
        encoder(x, lengths=[5, 3])


def test_a_check_wants_an_encoder():
    with pytest.raises(TypeError, match="check_finite: encoder must be an Encoder; got Linear"), \
            check_finite(torch.nn.Linear(1, 1)):
        pass

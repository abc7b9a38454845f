"""The state space dual beyond what holds for the whole family (test_family.py): its options, and mamba_ssm's calls."""

import math

import pytest
import torch

from myfla.ops.ssd import (
    chunk_ssd,
    fused_recurrent_ssd,
    mamba_chunk_scan_combined,
    naive_recurrent_ssd,
    selective_state_update,
)
from myfla.testing import assert_close, cases

HEADS, GROUPS, K, V = 4, 2, 5, 6
FORMS = {"chunk": chunk_ssd, "recurrent": fused_recurrent_ssd, "naive": naive_recurrent_ssd}
OPTIONS = {
    "bare": {},
    "bias": dict(D=(HEADS,), dt_bias=(HEADS,)),
    "softplus": dict(D=(HEADS, V), dt_bias=(HEADS,), dt_softplus=True, dt_limit=(0.2, 1.1)),
    "gate": dict(z=True, dt_softplus=True),
    "unbounded": dict(dt_limit=(-math.inf, math.inf), D=(HEADS,)),
}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(batch=2, tokens=19, options=None, dtype=torch.float64):
    given = dict(x=draw(batch, tokens, HEADS, V), dt=draw(batch, tokens, HEADS, seed=1),
                 A=-draw(HEADS, seed=2).abs() - 0.1, B=draw(batch, tokens, GROUPS, K, seed=3),
                 C=draw(batch, tokens, GROUPS, K, seed=4))
    for name, value in (options or {}).items():
        if name in ("D", "dt_bias"):
            value = draw(*value, seed=5)
        given[name] = draw(batch, tokens, HEADS, V, seed=6) if name == "z" else value
    return {name: x.to(dtype) if isinstance(x, torch.Tensor) else x for name, x in given.items()}


def loop(x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, dt_limit=(0.0, math.inf), state=None):
    """The equations of Mamba-2, token by token, states ``[B, HV, V, K]``."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (1 + dt.exp()).log() if dt_softplus else dt
    dt = dt.clamp(*dt_limit)
    B, C = (t.repeat_interleave(HEADS // GROUPS, 2) for t in (B, C))
    state = x.new_zeros(x.shape[0], HEADS, V, K) if state is None else state
    ys = []
    for t in range(x.shape[1]):
        written = (dt[:, t, :, None] * x[:, t]).unsqueeze(3) * B[:, t].unsqueeze(2)
        state = (dt[:, t] * A).exp()[:, :, None, None] * state + written
        y = (state * C[:, t].unsqueeze(2)).sum(3)
        y = y if D is None else y + (D if D.dim() == 2 else D.unsqueeze(1)) * x[:, t]
        ys.append(y if z is None else y * z[:, t] * z[:, t].sigmoid())
    return torch.stack(ys, 1), state


@cases(form=list(FORMS), option=list(OPTIONS))
def test_every_option_equals_the_loop_with_every_gradient(form, option):
    given = inputs(options=OPTIONS[option])
    leaves = {name: x.requires_grad_() for name, x in given.items() if isinstance(x, torch.Tensor)}
    first = draw(2, HEADS, V, K, seed=7).requires_grad_()
    results = []
    for run in (loop, FORMS[form]):
        if run is loop:
            y, final = loop(**given, state=first)
        else:
            y, final = run(**given, initial_state=first.transpose(2, 3), output_final_state=True)
            final = final.transpose(2, 3)
        loss = (y * draw(*y.shape, seed=8)).sum() + (final * draw(*final.shape, seed=9)).sum()
        results.append((y, final, *torch.autograd.grad(loss, [*leaves.values(), first])))
    for name, want, got in zip(("y", "final", *leaves, "initial"), *results):
        assert_close(got, want, rms=1e-12, name=name)


@cases(form=["chunk", "recurrent"])
def test_all_parameters_pass_gradcheck_of_both_orders(form):
    given = inputs(batch=1, tokens=3, options={**OPTIONS["gate"], **OPTIONS["bias"]})
    tensors = {name: x.requires_grad_() for name, x in given.items() if isinstance(x, torch.Tensor)}
    others = {name: x for name, x in given.items() if name not in tensors}

    def run(*xs):
        return FORMS[form](**dict(zip(tensors, xs)), **others)[0]

    assert torch.autograd.gradcheck(run, list(tensors.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, list(tensors.values()), fast_mode=True)


@cases(dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_half_inputs_are_rounded_once_at_the_end(dtype):
    given = inputs(options=dict(OPTIONS["gate"], **OPTIONS["bias"]), dtype=dtype)
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    want, last = loop(**wide)
    y, final = chunk_ssd(**given, output_final_state=True, state_v_first=True)
    assert y.dtype == dtype and final.dtype == torch.float32
    narrow = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    assert torch.equal(y, chunk_ssd(**narrow)[0].to(dtype))
    assert_close(final, last, rms=2e-6)
    assert_close(y, want, rms={torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype])


# ---- mamba_ssm's calls ---------------------------------------------------------------------------------------------


def test_the_official_call_has_value_first_states_and_returns_what_was_asked_for():
    given = inputs(options=OPTIONS["softplus"])
    first = draw(2, HEADS, V, K, seed=7)
    want, last = loop(**given, state=first)
    assert_close(mamba_chunk_scan_combined(**given, chunk_size=256, initial_states=first), want, rms=1e-12)
    y, final = mamba_chunk_scan_combined(**given, initial_states=first, return_final_states=True)
    assert_close(y, want, rms=1e-12)
    assert_close(final, last, rms=1e-12)


def test_sequence_numbers_keep_packed_sequences_apart_in_every_row():
    given = inputs(options=OPTIONS["softplus"])
    first = draw(2, HEADS, V, K, seed=7).requires_grad_()
    seq_idx = torch.tensor([[0] * 7 + [1] * 12, [5] * 3 + [2] + [8] * 15])
    y, final = mamba_chunk_scan_combined(**given, initial_states=first, seq_idx=seq_idx, return_final_states=True)
    for row, bounds in ((0, (0, 7, 19)), (1, (0, 3, 4, 19))):
        for start, stop in zip(bounds[:-1], bounds[1:]):
            part = {name: x[row : row + 1, start:stop] if getattr(x, "dim", int)() > 2 else x
                    for name, x in given.items()}
            alone, last = loop(**part, state=first[row : row + 1] if start == 0 else None)
            assert_close(y[row : row + 1, start:stop], alone, rms=1e-12)
        assert_close(final[row : row + 1], last, rms=1e-12)


def test_offsets_alone_keep_sequences_apart_and_give_the_states_of_each():
    given = inputs(batch=1, options=OPTIONS["softplus"])
    cu = torch.tensor([0, 7, 7, 19])
    first = draw(3, HEADS, V, K, seed=7)
    y, final, each = mamba_chunk_scan_combined(
        **given, initial_states=first, cu_seqlens=cu, return_final_states=True, return_varlen_states=True)
    assert torch.equal(final, each)
    for n, (start, stop) in enumerate(((0, 7), (7, 7), (7, 19))):
        part = {name: x[:, start:stop] if getattr(x, "dim", int)() > 2 else x for name, x in given.items()}
        if start == stop:
            assert_close(each[n], first[n], rms=1e-12)
            continue
        alone, last = loop(**part, state=first[n : n + 1])
        assert_close(y[:, start:stop], alone, rms=1e-12)
        assert_close(each[n : n + 1], last, rms=1e-12)


def test_both_ways_to_tell_of_sequences_must_agree():
    given, seq_idx = inputs(batch=1), torch.tensor([[0] * 7 + [1] * 12])
    cu = torch.tensor([0, 7, 19])
    y, each = mamba_chunk_scan_combined(**given, seq_idx=seq_idx, cu_seqlens=cu, return_varlen_states=True)
    assert torch.equal(y, mamba_chunk_scan_combined(**given, cu_seqlens=cu)) and each.shape == (2, HEADS, V, K)
    with pytest.raises(ValueError, match=r"cu_seqlens.* must begin sequences where seq_idx does"):
        mamba_chunk_scan_combined(**given, seq_idx=seq_idx, cu_seqlens=torch.tensor([0, 8, 19]))


@cases(tied=[True, False], option=list(OPTIONS), groups=[1, 2, HEADS], rows=[False, True])
def test_one_step_equals_the_loop_and_writes_the_state(tied, option, groups, rows):
    given = inputs(tokens=1, options=OPTIONS[option])
    given.pop("dt_limit", None)
    B, C = (draw(2, groups, K, seed=seed) for seed in (3, 4))
    state = draw(5 if rows else 2, HEADS, V, K, seed=7)
    index = torch.tensor([3, 0]) if rows else None
    before = state[index] if rows else state.clone()
    dt = given["dt"][:, 0].unsqueeze(2).expand(-1, -1, V)
    A = given["A"].view(-1, 1, 1).expand(-1, V, K)
    D, bias, z = (given.get(name) for name in ("D", "dt_bias", "z"))
    D = None if D is None else D if D.dim() == 2 else D.unsqueeze(1).expand(-1, V)
    bias = None if bias is None else bias.unsqueeze(1).expand(-1, V)
    if not tied:  # what Mamba-1 has
        dt, A = dt + draw(2, HEADS, V, seed=10), A * draw(HEADS, V, K, seed=11).abs()
        bias = None if bias is None else bias + draw(HEADS, V, seed=12)
    step = dt if bias is None else dt + bias
    step = (1 + step.exp()).log() if given.get("dt_softplus") else step
    wide_B, wide_C = (t.repeat_interleave(HEADS // groups, 1).unsqueeze(2) for t in (B, C))
    new = (step.unsqueeze(3) * A).exp() * before + (step * given["x"][:, 0]).unsqueeze(3) * wide_B
    want = (new * wide_C).sum(3) + (0 if D is None else D * given["x"][:, 0])
    want = want if z is None else want * z[:, 0] * z[:, 0].sigmoid()
    y = selective_state_update(
        state, given["x"][:, 0], dt, A, B, C, D, None if z is None else z[:, 0], bias,
        dt_softplus=given.get("dt_softplus", False), state_batch_indices=index)
    assert_close(y, want, rms=1e-12)
    assert_close(state[index] if rows else state, new, rms=1e-12)
    if rows:
        assert torch.equal(state[[1, 2, 4]], draw(5, HEADS, V, K, seed=7)[[1, 2, 4]])


def test_one_step_is_differentiable_and_goes_on_from_a_half_precision_state():
    x, one = draw(2, 3, seed=1).requires_grad_(), torch.ones(2, 3, dtype=torch.float64)
    state = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    A, B = -torch.ones(3, 4, dtype=torch.float64), draw(2, 4, seed=3)
    y = selective_state_update(state, x, one, A, B, B)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_close(grad, B.square().sum(1, keepdim=True).expand(2, 3), rms=1e-12)
    assert state.dtype == torch.bfloat16
    assert_close(state, x.detach().unsqueeze(2) * B.unsqueeze(1), rms=4e-3)


# ---- refusals ------------------------------------------------------------------------------------------------------


@cases(field_and_change=[
    ("x", dict(x=draw(2, 19, HEADS)), r"x must have shape \[B, T, HV, V\]"),
    ("dt", dict(dt=draw(2, 19, HEADS, 1)), r"dt must have shape \(2, 19, 4\)"),
    ("A", dict(A=draw(HEADS, 1)), r"A must have shape \(4,\)"),
    ("B", dict(B=draw(2, 19, 3, K), C=draw(2, 19, 3, K)), r"number of heads \(groups\) that divides x's HV=4"),
    ("C", dict(C=draw(2, 19, GROUPS, K + 1)), "C must have the shape of B"),
    ("B", dict(B=draw(2, 18, GROUPS, K), C=draw(2, 18, GROUPS, K)), "B must have the batch and length of x"),
    ("D", dict(D=draw(3)), r"D must have shape \(4,\) or \(4, 6\)"),
    ("z", dict(z=draw(2, 19, HEADS, V - 1)), r"z must have shape \(2, 19, 4, 6\)"),
    ("dt_bias", dict(dt_bias=draw(1)), r"dt_bias must have shape \(4,\)"),
    ("dt", dict(dt=torch.zeros(2, 19, HEADS, dtype=torch.int64)), "dt must be a floating point tensor"),
    ("dt_limit", dict(dt_limit=(2.0, 1.0)), "dt_limit must be two numbers"),
    ("dt_limit", dict(dt_limit=3.0), "dt_limit must be two numbers"),
], form=list(FORMS))
def test_what_does_not_fit_is_named(field_and_change, form):
    _, change, rule = field_and_change
    with pytest.raises(ValueError, match=rule.replace(" must", "(=.*)? must", 1)) as caught:
        FORMS[form](**{**inputs(), **change})
    assert str(caught.value).startswith(FORMS[form].__name__)


@cases(change=[
    (dict(x=draw(2, HEADS, 1)), r"x.* must have shape \[2, 4, 6\]"),
    (dict(B=draw(2, 3, K)), r"B.* must have shape \[2, H, 5\] where H divides 4"),
    (dict(dt=draw(2, HEADS, 1)), r"dt.* must have shape \(2, 4, 6\)"),
    (dict(A=draw(HEADS, V, 1)), r"A.* must have shape \(4, 6, 5\)"),
    (dict(state=draw(2, 2)), r"state.* must have shape \[N, HV, V, K\]"),
    (dict(state=torch.zeros(2, HEADS, V, K, dtype=torch.int64)), "state.* must be a floating point tensor"),
    (dict(state_batch_indices=torch.tensor([1])), "state_batch_indices.* must have one row for each of 2 tokens"),
    (dict(state_batch_indices=torch.tensor([1, 1])), "state_batch_indices.* must be different rows from 0 to 1"),
    (dict(state_batch_indices=torch.tensor([0, 2])), "state_batch_indices.* must be different rows from 0 to 1"),
])
def test_a_step_that_does_not_fit_is_named(change):
    given = dict(state=draw(2, HEADS, V, K), x=draw(2, HEADS, V), dt=draw(2, HEADS, V), A=draw(HEADS, V, K),
                 B=draw(2, GROUPS, K), C=draw(2, GROUPS, K))
    with pytest.raises(ValueError, match=change[1]):
        selective_state_update(**{**given, **change[0]})


@cases(change=[
    (dict(return_varlen_states=True), "return_varlen_states.* needs cu_seqlens"),
    (dict(seq_idx=torch.zeros(2, 18, dtype=torch.int64)), "seq_idx.* must have the batch and length of x"),
    (dict(seq_idx=torch.zeros(2, 19)), "seq_idx.* must hold integers"),
    (dict(initial_states=draw(1, HEADS, V, K)), r"initial_states.* must have shape \[N, HV, V, K\]"),
    (dict(initial_states=draw(1, HEADS, V, K), seq_idx=torch.zeros(2, 19, dtype=torch.int64)),
     r"initial_states.* must have shape \[B, HV, V, K\] with B = 2"),
])
def test_an_official_call_that_does_not_fit_is_named(change):
    with pytest.raises(ValueError, match=r"^mamba_chunk_scan_combined: " + change[1]):
        mamba_chunk_scan_combined(**inputs(), **change[0])

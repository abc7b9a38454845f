"""One decoding step: the recurrence's own bits in fewer calls."""

import inspect
import sys

import pytest
import torch

import truth
from myfla.ops._delta.plans import forget_plans
from myfla.ops._delta.recurrent import loop
from myfla.ops.gated_delta_rule import fused_recurrent, fused_recurrent_gated_delta_rule
from myfla.ops.generalized_delta_rule import fused_recurrent_dplr_delta_rule
from myfla.ops.rwkv7 import fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from myfla.testing import assert_close, cases
from myfla.utils.l2norm import l2norm

SIZES = [(8, 6), (64, 64), (128, 32), (48, 100)]
UNIT = dict(use_qk_l2norm_in_kernel=True)
GATES = dict(UNIT, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True)


def make(rows, tokens, sizes, dtype=torch.float32, gates=False, heads=4):
    (key, value), draw = sizes, torch.Generator().manual_seed(7)
    shapes = dict(q=(2, key), k=(2, key), v=(heads, value), g=(heads,), beta=(heads,))
    given = {name: torch.randn(rows, tokens, *shape, generator=draw).to(dtype) for name, shape in shapes.items()}
    state = torch.randn(rows, heads, key, value, generator=draw)
    if gates:
        return given, state, dict(GATES, A_log=torch.rand(heads), dt_bias=torch.rand(heads))
    given["g"], given["beta"] = -given["g"].abs(), given["beta"].sigmoid()
    return given, state, UNIT


def at(given, t):
    return {name: x[:, t : t + 1] for name, x in given.items()}


def stepwise(given, state, **more):
    outputs, more = [], dict(more, output_final_state=True)
    for t in range(given["q"].shape[1]):
        o, state = fused_recurrent_gated_delta_rule(**at(given, t), initial_state=state, **more)
        outputs.append(o)
    return torch.cat(outputs, 1), state


def error(op, **arguments):
    try:
        op(**arguments)
    except Exception as found:
        return type(found), str(found)
    return None


@cases(sizes=SIZES, gates=[False, True], dtype=[torch.float32, torch.bfloat16], rows=[1, 3])
def test_steps_give_the_bits_of_the_whole_in_place_or_not(sizes, gates, dtype, rows):
    given, state, more = make(rows, 5, sizes, dtype, gates)
    before = state.clone()
    o, final = fused_recurrent_gated_delta_rule(**given, initial_state=state, output_final_state=True, **more)
    for inplace in (False, True):
        got, last = stepwise(given, state, inplace_final_state=inplace, **more)
        assert torch.equal(got, o) and torch.equal(last, final) and got.dtype == dtype
        assert (last is state) == inplace and torch.equal(state, final if inplace else before)


@cases(sizes=SIZES, gates=[False, True])
def test_steps_equal_the_float64_loop(sizes, gates):
    given, state, more = make(2, 6, sizes, gates=gates)
    flags = dict(l2norm=True, sigmoid=gates, neg_eigval=gates, A_log=more.get("A_log"), dt_bias=more.get("dt_bias"))
    want = truth.gated_delta_rule(**given, initial_state=state, **flags)
    for mine, exact in zip(stepwise(given, state, **more), want):
        assert_close(mine, exact, 5e-7)


@cases(sizes=[(8, 6), (64, 64)])
def test_large_states_go_block_by_block_with_the_same_bits(sizes, monkeypatch):
    given, state, more = make(5, 1, sizes)
    want = stepwise(given, state, **more)
    monkeypatch.setattr(loop, "STEP_WHOLE", 0)
    forget_plans()
    assert all(map(torch.equal, stepwise(given, state, **more), want))
    monkeypatch.setattr(loop, "STEP_BLOCK", 3 * sizes[0] * sizes[1])
    forget_plans()
    assert all(map(torch.equal, stepwise(given, state, **more), want))


def spoilt(given, state):
    """Calls that are none of a decoding step's, or refused, each one change away from one."""
    bad = lambda **change: dict(given, initial_state=state, **change)  # noqa: E731
    yield from ({**bad(), "q": x} for x in (given["q"][0], given["q"].int(), None, given["q"][:, :0], given["q"][:0]))
    yield from ({**bad(), "k": x} for x in (given["k"][:, :, :1], given["k"][..., :3], given["k"].to("meta"), 3))
    yield from ({**bad(), "v": x} for x in (given["v"][:, :, :3], given["v"][:1], given["v"][..., 0], "v"))
    yield from ({**bad(), "g": x} for x in (given["g"][:, :, :1], given["g"][..., None], given["g"].long(), None))
    yield from ({**bad(), "beta": x} for x in (given["beta"][:1], given["beta"].bool(), given["beta"].to("meta")))
    odd = (state[:1], state.transpose(2, 3), state.int(), state.to("meta"), state.bfloat16(), state.double(), None)
    yield from ({**bad(), "initial_state": x} for x in odd)
    yield {**bad(), "q": given["q"][:, :, :0], "k": given["k"][:, :, :0]}
    yield {**bad(), "q": given["q"].repeat(1, 2, 1, 1), "k": given["k"].repeat(1, 2, 1, 1)}
    for option in (
        dict(state_v_first=True), dict(scale="x"), dict(scale=float("nan")), dict(backend="none"), dict(backend=3),
        dict(use_gate_in_kernel=True), dict(allow_neg_eigval=True), dict(use_gate_in_kernel=True, A_log=3),
        dict(use_gate_in_kernel=True, A_log=torch.zeros(1)), dict(gk=3), dict(gv=torch.zeros(1)), dict(unknown=1),
        dict(use_gate_in_kernel=True, A_log=torch.zeros(4), dt_bias=torch.zeros(4, device="meta")),
        dict(use_gate_in_kernel=True, A_log=torch.zeros(4).double(), inplace_final_state=True),
        dict(cu_seqlens=torch.tensor([0, 1])), dict(head_first=True), dict(transpose_state_layout=True),
    ):  # fmt: skip
        yield bad(**option)


@cases(inplace=[False, True])
@pytest.mark.filterwarnings("ignore:.*transpose_state_layout")
def test_the_short_way_refuses_what_the_checks_refuse_in_their_words(inplace, monkeypatch):
    given, state, _ = make(2, 1, (8, 6))
    calls = [{"inplace_final_state": inplace, **call} for call in spoilt(given, state)]
    assert error(fused_recurrent_gated_delta_rule, **given, initial_state=state, inplace_final_state=inplace) is None
    short = [error(fused_recurrent_gated_delta_rule, **call) for call in calls]
    monkeypatch.setattr(fused_recurrent, "call_key", lambda *x: None)
    checked = [error(fused_recurrent_gated_delta_rule, **call) for call in calls]
    assert short == checked and sum(x is not None for x in checked) > 25


def rwkv7(rows, tokens, sizes, dtype=torch.float32):
    (key, value), draw = sizes, torch.Generator().manual_seed(7)
    shapes = dict(r=key, w=key, k=key, v=value, kk=key, a=key)
    given = {name: torch.randn(rows, tokens, 2, size, generator=draw) for name, size in shapes.items()}
    given.update(kk=l2norm(given["kk"]), w=-given["w"].abs(), a=given["a"].sigmoid())
    return {name: x.to(dtype) for name, x in given.items()}, torch.randn(rows, 2, key, value, generator=draw)


@cases(sizes=[(16, 32), (64, 64), (128, 32)], dtype=[torch.float32, torch.bfloat16], scale=[1.0, 0.3], rows=[1, 3])
def test_rwkv7_steps_give_the_bits_of_the_whole_in_place_or_not(sizes, dtype, scale, rows):
    given, state = rwkv7(rows, 5, sizes, dtype)
    more, before = dict(scale=scale, output_final_state=True), state.clone()
    o, final = fused_mul_recurrent_rwkv7(**given, initial_state=state, **more)
    for inplace in (False, True):
        outputs, last = [], state
        for t in range(5):
            got, last = fused_mul_recurrent_rwkv7(
                **at(given, t), initial_state=last, inplace_final_state=inplace, **more
            )
            outputs.append(got)
        assert torch.equal(torch.cat(outputs, 1), o) and torch.equal(last, final) and got.dtype == dtype
        assert (last is state) == inplace and torch.equal(state, final if inplace else before)


def test_rwkv7_steps_equal_the_float64_loop_block_by_block_too(monkeypatch):
    given, state = rwkv7(5, 1, (64, 64))
    want = truth.rwkv7(**given, initial_state=state)
    whole = fused_mul_recurrent_rwkv7(**given, initial_state=state, output_final_state=True)
    monkeypatch.setattr(loop, "STEP_WHOLE", 0)
    monkeypatch.setattr(loop, "STEP_BLOCK", 5 * 64 * 64)
    forget_plans()
    for mine, exact, one in zip(
        fused_mul_recurrent_rwkv7(**given, initial_state=state, output_final_state=True), want, whole
    ):
        assert_close(mine, exact, 5e-7)
        assert torch.equal(mine, one)


@cases(op=[fused_recurrent_rwkv7, fused_mul_recurrent_rwkv7, fused_recurrent_dplr_delta_rule], inplace=[False, True])
def test_the_other_family_refuses_the_same_by_its_short_way(op, inplace, monkeypatch):
    names = list(inspect.signature(op).parameters)[:6]
    given = {name: torch.randn(2, 1, 2, 32 if name == "v" else 16) for name in names}
    state = torch.randn(2, 2, 16, 32)
    good = dict(given, initial_state=state, inplace_final_state=inplace)
    calls = [good]
    for name, x in given.items():
        calls += [{**good, name: y} for y in (x[:1], x[0], x[..., :5], x.int(), x.to("meta"), None, "x", x[:, :0])]
    odd = (state[:1], state.transpose(2, 3), state.int(), state.to("meta"), state.bfloat16(), state.double(), None)
    calls += [{**good, "initial_state": y} for y in odd]
    calls += [{**good, "scale": "x"}, {**good, "backend": "none"}, {**good, "cu_seqlens": torch.tensor([0, 1])}]
    short = [error(op, **call) for call in calls]
    monkeypatch.setattr(sys.modules[op.__module__], "call_key", lambda *x: None)
    assert short == [error(op, **call) for call in calls]
    assert short[0] is None and sum(x is not None for x in short) > 40

"""Decoding steps that are planned once: the bits of the whole way, and nothing that a step depends on is overlooked."""

import gc
import sys
import threading
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from myfla.ops._delta import dispatch, steps
from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import fused_mul_recurrent_rwkv7
from myfla.testing import cases
from myfla.utils.errors import BackendError
from state_subjects import EVERY, Op, op_state, rwkv7_inputs

GATES = dict(use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True)
PLANNED = {
    name: op for name, op in EVERY.items()
    if name.endswith("recurrent") and getattr(op, "steps", 1) == 1 and "ssd" not in name
}  # fmt: skip
run_rule = sys.modules["myfla.ops.common.run_rule"]


def mul_inputs(batch, tokens, **more):
    given = rwkv7_inputs(batch, tokens, **more)
    return {**{name: given[name] for name in "rwkv"}, "kk": -given["a"], "a": torch.rand_like(given["a"])}


PLANNED["rwkv7_mul"] = Op(fused_mul_recurrent_rwkv7, True, mul_inputs, 2)


@pytest.fixture(autouse=True)
def fresh():
    steps.forget_steps()


def state_of(name, rows):
    return op_state("rwkv7_recurrent" if name == "rwkv7_mul" else name, rows)


def the_whole_way(monkeypatch, run, *given, **named):
    """What a call gives that is checked and dispatched as any other."""
    with monkeypatch.context() as context:
        context.setattr(steps, "undisturbed", lambda: False)
        return run(*given, **named)


def nobody(*_):
    raise AssertionError("a planned step was dispatched again")


@cases(name=list(PLANNED), dtype=[torch.float32, torch.bfloat16])
def test_a_step_like_one_before_goes_straight_to_the_same_bits(name, dtype, monkeypatch):
    op = PLANNED[name]
    first, given, state = op.inputs(2, 1, dtype=dtype, seed=1), op.inputs(2, 1, dtype=dtype), state_of(name, 2)
    before = state.clone()
    want = the_whole_way(monkeypatch, op, given, state)
    op(first, state)
    assert len(steps._steps) == 1
    monkeypatch.setattr(run_rule, "select", nobody)
    got = op(given, state)
    assert all(map(torch.equal, got, want)) and got[0].dtype == want[0].dtype
    assert torch.equal(state, before) and got[1] is not state


class Watching(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


def arguments(rows=2, heads=4, K=8, V=6, dtype=torch.float32, **more):
    draw = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(rows, 1, *shape, generator=draw).to(dtype)  # noqa: E731
    given = dict(q=make(2, K), k=make(2, K), v=make(heads, V), g=make(heads), beta=make(heads))
    given["initial_state"] = torch.randn(rows, heads, K, V, generator=draw)
    given["A_log"], given["dt_bias"] = (torch.randn(heads, generator=draw) for _ in "Ad")
    return {**given, **GATES, "output_final_state": True, **more}


def apart(x):
    """The same numbers with others between them."""
    return torch.stack((x, torch.full_like(x, float("nan"))), -1)[..., 0]


def changed():
    """Calls each one change away from the planned one."""
    base = arguments()
    yield from (dict(base, **{name: apart(base[name])}) for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias"))
    yield from (dict(base, **{name: base[name].bfloat16()}) for name in ("q", "v", "g", "initial_state", "A_log"))
    yield from (dict(base, **{name: torch.complex(base[name], -base[name]).conj().imag}) for name in ("q", "v", "beta"))
    yield from (dict(base, **{name: None}) for name in ("dt_bias", "initial_state"))
    yield dict(base, v=torch.nn.Parameter(base["v"].clone(), requires_grad=False))
    yield dict(base, initial_state=apart(base["initial_state"]))
    yield dict(base, initial_state=base["initial_state"].transpose(0, 1).contiguous().transpose(0, 1))
    yield dict(base, initial_state=base["initial_state"].double())
    yield dict(base, gk=torch.randn(2, 1, 4, 8)), dict(base, gv=torch.randn(2, 1, 4, 6))
    yield from (arguments(rows=3), arguments(heads=2), arguments(K=16), arguments(V=16), arguments(dtype=torch.float64))
    for option in (
        dict(scale=0.3), dict(scale=torch.tensor(0.3)), dict(output_final_state=False), dict(allow_neg_eigval=True),
        dict(use_qk_l2norm_in_kernel=False), dict(use_gate_in_kernel=False), dict(use_beta_sigmoid_in_kernel=False),
        dict(backend="naive"), dict(state_v_first=True, initial_state=base["initial_state"].transpose(2, 3)),
        dict(inplace_final_state=True),
    ):  # fmt: skip
        yield dict(base, **option)


def results(call):
    call = {name: x.clone() if name == "initial_state" and x is not None and x.is_contiguous() else x
            for name, x in call.items()}  # fmt: skip
    return fused_recurrent_gated_delta_rule(**call)


def test_a_change_of_anything_is_seen_at_once(monkeypatch):
    results(arguments())
    for call in (call for some in changed() for call in (some if isinstance(some, tuple) else (some,))):
        want = the_whole_way(monkeypatch, results, call)
        for _ in range(2):
            for a, b in zip(results(call), want):
                assert a is b is None or (torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride())


def test_a_scale_that_is_a_tensor_is_read_each_time():
    scale = torch.tensor(1.0)
    one = results(arguments(scale=scale))[0]
    scale.fill_(2.0)
    assert torch.equal(results(arguments(scale=scale))[0], 2 * one)


@pytest.mark.skipif(not hasattr(torch._C, "_len_torch_dispatch_stack"), reason="came with PyTorch 2.0")
def test_who_watches_or_records_sees_the_plain_operations():
    call = dict(arguments(), backend="torch")
    want = results(call)
    with Watching() as mode:
        assert all(map(torch.equal, results(call), want)) and mode.seen > 5
    leaf, inplace = dict(call, v=call["v"].clone().requires_grad_()), dict(inplace_final_state=True)
    assert results(leaf)[0].requires_grad
    results(dict(call, **inplace))
    with pytest.raises(ValueError, match="autograd to be off"):
        results(dict(leaf, **inplace))
    with torch.no_grad():
        assert all(map(torch.equal, results(leaf), want))
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, results(call), want))
    with forward_ad.dual_level():
        assert steps.step_key("op", (), call["initial_state"], None, call["q"]) is None
    meta = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    assert results(meta)[0].is_meta and all(map(torch.equal, results(call), want))


def test_a_backend_that_joins_is_asked_and_one_that_leaves_is_not(monkeypatch):
    call, seen = dict(arguments(), backend="torch"), []
    want = results(call)
    loop = next(one for one in dispatch._registry if one.name == "loop")
    monkeypatch.setattr(dispatch, "_registry", list(dispatch._registry))
    own = loop._replace(name="own", run=lambda call: seen.append(call.who) or loop.run(call), plan=None)
    dispatch.register(own, before="loop")
    assert all(map(torch.equal, results(call), want)) and seen
    with pytest.raises(BackendError, match="backend"):
        results(dict(call, backend="unknown"))


def test_a_plan_keeps_no_tensor_of_a_call_alive():
    call = arguments()
    found = results(call)
    alive = [weakref.ref(x) for x in (*call.values(), *found) if isinstance(x, torch.Tensor)]
    assert steps._steps
    del call, found
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_no_more_steps_are_kept_than_promised(monkeypatch):
    monkeypatch.setattr(steps, "MOST", 5)
    for rows in range(1, 14):
        results(arguments(rows=rows))
        assert 1 <= len(steps._steps) <= 5


@cases(inplace=[False, True])
def test_threads_share_a_plan_and_nothing_else(inplace):
    calls = [arguments(inplace_final_state=inplace, q=torch.randn(2, 1, 2, 8)) for _ in range(8)]
    found = {}

    def decode(call):
        state, outputs = call["initial_state"].clone(), []
        for _ in range(20):
            o, state = fused_recurrent_gated_delta_rule(**{**call, "initial_state": state})
            outputs.append(o)
        return torch.cat(outputs, 1), state

    wanted = [decode(call) for call in calls]
    workers = [
        threading.Thread(target=lambda i=i, call=call: found.update({i: decode(call)})) for i, call in enumerate(calls)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for i, want in enumerate(wanted) for a, b in zip(found[i], want))

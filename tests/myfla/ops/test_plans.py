"""Calls that are planned once: the bits of the whole way, and nothing that a call depends on is overlooked."""

import gc
import sys
import threading
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from myfla.ops._delta import dispatch, plans
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7
from myfla.testing import cases
from myfla.utils.errors import BackendError
from myfla.utils.native import native_package
from state_subjects import EVERY, Op, op_state, rwkv7_inputs

GATES = dict(use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True)
PLANNED = {name: op for name, op in EVERY.items() if getattr(op, "steps", 1) == 1 and "ssd" not in name}
FORMS = {"chunk": chunk_gated_delta_rule, "recurrent": fused_recurrent_gated_delta_rule}
run_rule = sys.modules["myfla.ops.common.run_rule"]


def mul_inputs(batch, tokens, **more):
    given = rwkv7_inputs(batch, tokens, **more)
    return {**{name: given[name] for name in "rwkv"}, "kk": -given["a"], "a": torch.rand_like(given["a"])}


PLANNED["rwkv7_mul_recurrent"] = Op(fused_mul_recurrent_rwkv7, True, mul_inputs, 2)


@pytest.fixture(autouse=True)
def fresh():
    plans.forget_plans()


def state_of(name, rows):
    return op_state("rwkv7_recurrent" if name == "rwkv7_mul_recurrent" else name, rows)


def the_whole_way(monkeypatch, run, *given, **named):
    """What a call gives that is checked and dispatched as any other."""
    with monkeypatch.context() as context:
        context.setattr(plans, "undisturbed", lambda: False)
        return run(*given, **named)


def nobody(*_):
    raise AssertionError("a planned call was dispatched again")


def numbers(op, given, state, cu, grads):
    """The results, and the gradients of all inputs."""
    given, state = {name: x.clone().requires_grad_(grads) for name, x in given.items()}, state.clone()
    o, final = op(given, state.requires_grad_(grads), cu)
    if not grads:
        return o, final
    found = torch.autograd.grad((o.double() ** 2).sum() + final.sum(), [*given.values(), state])
    return (o, final, *found)


@cases(name=list(PLANNED), dtype=[torch.float32, torch.bfloat16], tokens=[1, 21], grads=[False, True],
       cu=[None, [0, 1, 1, 21]])  # fmt: skip
def test_a_call_like_one_before_goes_straight_to_the_same_bits(name, dtype, tokens, grads, cu, monkeypatch):
    """The recurrent form of plain PyTorch is planned for decoding steps only."""
    if tokens == 1 and cu is not None:
        cu = [0, 1, 1]
    op, rows, cu = PLANNED[name], 1 if cu else 2, None if cu is None else torch.tensor(cu)
    first, given = op.inputs(rows, tokens, dtype=dtype, seed=1), op.inputs(rows, tokens, dtype=dtype)
    state = state_of(name, rows if cu is None else len(cu) - 1)
    before = state.clone()
    want = the_whole_way(monkeypatch, numbers, op, given, state, cu, grads)
    numbers(op, first, state, cu, grads)
    compiled = native_package() is not None and not (grads and "gla" in name)
    planned = name.endswith("chunk") or compiled or (tokens == 1 and cu is None and not grads)
    assert len(plans._plans) == planned
    if planned:
        monkeypatch.setattr(run_rule, "select", nobody)
    got = numbers(op, given, state, cu, grads)
    assert all(map(torch.equal, got, want)) and got[0].dtype == want[0].dtype
    assert torch.equal(state, before) and got[1] is not state


class Watching(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


def arguments(rows=2, tokens=1, heads=4, K=8, V=6, dtype=torch.float32, **more):
    draw = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(rows, tokens, *shape, generator=draw).to(dtype)  # noqa: E731
    given = dict(q=make(2, K), k=make(2, K), v=make(heads, V), g=make(heads), beta=make(heads))
    given["initial_state"] = torch.randn(rows, heads, K, V, generator=draw)
    given["A_log"], given["dt_bias"] = (torch.randn(heads, generator=draw) for _ in "Ad")
    return {**given, **GATES, "output_final_state": True, **more}


def apart(x):
    """The same numbers with others between them."""
    return torch.stack((x, torch.full_like(x, float("nan"))), -1)[..., 0]


def changed(form):
    """Calls each one change away from the planned one."""
    base = arguments()
    yield from (dict(base, **{name: apart(base[name])}) for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias"))
    yield from (dict(base, **{name: base[name].bfloat16()}) for name in ("q", "v", "g", "initial_state", "A_log"))
    yield from (dict(base, **{name: torch.complex(base[name], -base[name]).conj().imag}) for name in ("q", "v", "beta"))
    yield from (dict(base, **{name: None}) for name in ("dt_bias", "initial_state"))
    yield from (dict(base, **{name: base[name].clone().requires_grad_()}) for name in ("v", "A_log", "initial_state"))
    yield dict(base, v=torch.nn.Parameter(base["v"].clone(), requires_grad=False))
    yield dict(base, initial_state=apart(base["initial_state"]))
    yield dict(base, initial_state=base["initial_state"].transpose(0, 1).contiguous().transpose(0, 1))
    yield dict(base, initial_state=base["initial_state"].double())
    yield from (arguments(rows=3), arguments(heads=2), arguments(K=16), arguments(V=16), arguments(dtype=torch.float64))
    yield from (arguments(tokens=2), arguments(tokens=70), arguments(rows=1, cu_seqlens=torch.tensor([0, 1])))
    options = [
        dict(scale=0.3), dict(scale=torch.tensor(0.3)), dict(output_final_state=False), dict(allow_neg_eigval=True),
        dict(use_qk_l2norm_in_kernel=False), dict(use_gate_in_kernel=False), dict(use_beta_sigmoid_in_kernel=False),
        dict(backend="naive"), dict(state_v_first=True, initial_state=base["initial_state"].transpose(2, 3)),
    ]  # fmt: skip
    if form == "chunk":
        options += [dict(chunk_size=16), dict(cu_seqlens_cpu=torch.tensor([0]))]
    else:
        options += [dict(inplace_final_state=True), dict(gk=torch.randn(2, 1, 4, 8)), dict(gv=torch.randn(2, 1, 4, 6))]
    yield from (dict(base, **option) for option in options)


def results(call, form="recurrent"):
    state = call["initial_state"]
    if state is not None and state.is_contiguous():
        call = dict(call, initial_state=state.detach().clone().requires_grad_(state.requires_grad))
    return FORMS[form](**call)


@cases(form=list(FORMS))
def test_a_change_of_anything_is_seen_at_once(form, monkeypatch):
    results(arguments(), form)
    for call in changed(form):
        want = the_whole_way(monkeypatch, results, call, form)
        for _ in range(2):
            for a, b in zip(results(call, form), want):
                assert a is b is None or (torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride())
                assert a is None or a.requires_grad == b.requires_grad


def test_a_plan_serves_one_number_of_threads(monkeypatch):
    x = torch.zeros(2, 3)
    key = plans.call_key("op", (), x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert plans.call_key("op", (), x) != key


def test_keys_that_erase_and_write_at_once_are_not_taken_for_two_equal_ones(monkeypatch):
    given = rwkv7_inputs(2, 21)
    given["k"] = given["b"].clone()
    for tied in (True, False, True, False):
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        call = dict(leaves, b=leaves["k"]) if tied else leaves
        wanted = [x for name, x in call.items() if name != "b" or not tied]
        found = [
            torch.autograd.grad((run(chunk_rwkv7, **call)[0] ** 2).sum(), wanted)
            for run in (lambda op, **call: op(**call), lambda *x, **call: the_whole_way(monkeypatch, *x, **call))
        ]
        assert all(map(torch.equal, *found))


@cases(form=list(FORMS))
def test_offsets_are_checked_each_time(form, monkeypatch):
    def call(cu):
        return results(arguments(rows=1, tokens=7, cu_seqlens=torch.tensor(cu), initial_state=None), form)

    for cu in ([0, 3, 7], [0, 5, 7], [0, 0, 7]):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(call(cu), the_whole_way(monkeypatch, call, cu)))
    for cu in ([0, 3, 6], [1, 3, 7], [0, 8, 7]):
        with pytest.raises(ValueError, match="cu_seqlens") as planned:
            call(cu)
        with pytest.raises(ValueError, match="cu_seqlens") as checked:
            the_whole_way(monkeypatch, call, cu)
        assert str(planned.value) == str(checked.value)


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
        assert plans.call_key("op", (), call["initial_state"], call["q"]) is None
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


@cases(form=list(FORMS), tokens=[1, 40], grads=[False, True], packed=[False, True])
def test_a_plan_keeps_no_tensor_of_a_call_alive(form, tokens, grads, packed):
    call = arguments(rows=1, tokens=tokens, cu_seqlens=torch.tensor([0, tokens]) if packed else None)
    call = {name: x.clone().requires_grad_() if grads and isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for name, x in call.items()}  # fmt: skip
    found = FORMS[form](**call)
    if grads:
        found[0].sum().backward()
    alive = [weakref.ref(x) for x in (*call.values(), *found) if isinstance(x, torch.Tensor)]
    assert plans._plans or form == "recurrent"
    del call, found
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_no_more_plans_are_kept_than_promised(monkeypatch):
    monkeypatch.setattr(plans, "MOST", 5)
    for rows in range(1, 14):
        results(arguments(rows=rows))
        assert 1 <= len(plans._plans) <= 5


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

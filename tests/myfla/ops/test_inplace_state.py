"""``inplace_final_state``, the memory of large states, and the blocks of a step: the same bits, and nothing else is
written."""

import torch

from myfla.ops._delta.recurrent import loop
from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
from myfla.ops.generalized_delta_rule import fused_recurrent_dplr_delta_rule
from myfla.ops.rwkv7 import fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from myfla.testing import cases, raises
from state_subjects import gdn_inputs, rwkv7_inputs

CU = [0, 0, 5, 6, 6, 20, 20]


def dplr_inputs(batch, tokens, **more):
    given = rwkv7_inputs(batch, tokens, **more)
    return dict(q=given["r"], k=given["k"], v=given["v"], a=given["a"], b=given["b"], gk=given["w"])


def mul_inputs(batch, tokens, **more):
    given = rwkv7_inputs(batch, tokens, **more)
    kk = -given["a"]
    return {**{name: given[name] for name in "rwkv"}, "kk": kk, "a": torch.rand_like(kk)}


OPS = {
    "gdn": (fused_recurrent_gated_delta_rule, gdn_inputs, 4),
    "dplr": (fused_recurrent_dplr_delta_rule, dplr_inputs, 2),
    "rwkv7": (fused_recurrent_rwkv7, rwkv7_inputs, 2),
    "rwkv7_mul": (fused_mul_recurrent_rwkv7, mul_inputs, 2),
}


def grown(given, K, V):
    """The same with other head sizes."""
    draw = torch.Generator().manual_seed(5)
    sizes = {8: K, 6: V}
    return {
        name: x if x.dim() == 3 else torch.randn(*x.shape[:3], sizes[x.shape[3]], generator=draw, dtype=x.dtype) * 0.2
        for name, x in given.items()
    }


def make(op, batch, tokens, sizes=(8, 6), rows=None, dtype=torch.float32):
    function, inputs, heads = OPS[op]
    given = grown(inputs(batch, tokens, dtype=dtype), *sizes)
    for decay in {"g", "w", "gk"} & set(given):
        given[decay] = -given[decay].abs()
    return function, given, torch.randn(rows or batch, heads, *sizes, dtype=dtype)


@cases(op=list(OPS), sizes=[(8, 6), (16, 32)], tokens=[0, 1, 4], dtype=[torch.float32, torch.float64])
def test_in_place_gives_the_same_bits_in_the_state_itself(op, sizes, tokens, dtype):
    function, given, state = make(op, 3, tokens, sizes, dtype=dtype)
    before = state.clone()
    o, final = function(**given, initial_state=state, output_final_state=True)
    assert torch.equal(state, before)
    same, own = function(**given, initial_state=state, output_final_state=True, inplace_final_state=True)
    assert own is state and torch.equal(own, final) and torch.equal(same, o)


@cases(op=list(OPS), sizes=[(8, 6), (16, 32)])
def test_packed_sequences_are_written_in_place_too(op, sizes):
    cu = torch.tensor(CU)
    function, given, state = make(op, 1, CU[-1], sizes, rows=len(CU) - 1)
    o, final = function(**given, initial_state=state, output_final_state=True, cu_seqlens=cu)
    same, none = function(
        **given, initial_state=state, output_final_state=False, cu_seqlens=cu, inplace_final_state=True
    )
    assert none is None and torch.equal(state, final) and torch.equal(same, o)


def test_value_first_states_are_written_in_place_too():
    function, given, state = make("gdn", 2, 3)
    state = state.transpose(2, 3).contiguous()
    o, final = function(**given, initial_state=state, output_final_state=True, state_v_first=True)
    same, own = function(
        **given, initial_state=state, output_final_state=True, state_v_first=True, inplace_final_state=True
    )
    assert own is state and torch.equal(own, final) and torch.equal(same, o)


@cases(cu=[None, CU], own=[False, True])
def test_blocks_change_no_bit(cu, own, monkeypatch):
    rows = 7 if cu is None else len(cu) - 1
    function, given, state = make("gdn", 7 if cu is None else 1, 20, rows=rows)
    more = dict(output_final_state=True, cu_seqlens=None if cu is None else torch.tensor(cu), inplace_final_state=own)
    whole = function(**given, initial_state=state.clone(), **more)
    monkeypatch.setattr(loop, "STEP_BLOCK", 3 * 8 * 6)
    monkeypatch.setattr(loop, "STEP_WHOLE", 0)
    for got, want in zip(function(**given, initial_state=state.clone(), **more), whole):
        assert torch.equal(got, want)


@cases(op=list(OPS))
def test_what_cannot_be_written_is_refused_by_name(op):
    function, given, state = make(op, 2, 1)
    refusals = [
        (None, ("needs an initial_state to write", "NoneType", "torch.zeros")),
        (state.bfloat16(), ("in torch.float32", "torch.bfloat16", "initial_state.to(torch.float32)")),
        (state.transpose(0, 1).contiguous().transpose(0, 1), ("contiguous", "strides")),
        (state.clone().requires_grad_(), ("autograd to be off", "torch.no_grad()")),
    ]
    for bad, parts in refusals:
        with raises(ValueError, function.__name__, "inplace_final_state", *parts):
            function(**given, initial_state=bad, inplace_final_state=True)
    learned = dict(given, k=given["k"].clone().requires_grad_())
    with raises(ValueError, "inplace_final_state", "autograd to be off"):
        function(**learned, initial_state=state, inplace_final_state=True)


def test_states_are_values():
    function, given, state = make("gdn", 2, 1)
    kept, copies = [state], [state.clone()]
    for _ in range(5):
        state = function(**given, initial_state=state, output_final_state=True)[1]
        kept.append(state)
        copies.append(state.clone())
        function(**given, initial_state=kept[1], output_final_state=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies))

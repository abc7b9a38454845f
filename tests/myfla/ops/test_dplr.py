"""The diagonal-plus-low-rank delta rule: chunked and recurrent against a float64 token loop, values and gradients."""

import torch

import dplr_cases
from dplr_cases import DECAYS, everything, leaves, loop, make, run
from myfla.ops._delta.chunk import recurrence
from myfla.ops._delta.families.channel import LIMIT
from myfla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.ops.generalized_delta_rule.dplr.naive import dplr_chunkwise, dplr_recurrence
from myfla.testing import assert_close, cases

OPS = {"chunk": chunk_dplr_delta_rule, "recurrent": fused_recurrent_dplr_delta_rule}
CU = [0, 0, 1, 17, 17, 81, 100]
EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}


def hold(got, want, rms, names=None):
    for name in names or want:
        assert_close(got[name], want[name], rms=rms, name=name)


def check(op, given, rms, cu=None, scale=1.0, **options):
    """Outputs, states and all gradients of an op against the token loop."""
    inputs = leaves(given)
    hold(everything(run(OPS[op], inputs, scale, cu, **options), inputs), loop(given, scale, cu), rms)


@cases(T=[0, 1, 2, 5, 37])
def test_naive_forms_equal_the_token_loop(T):
    given = make(T=T)
    q, k, v, a, b, w = (x.transpose(1, 2) for x in (
        given["r"], given["k"], given["v"], -given["kk"], given["kk"] * given["a"], given["w"]))
    if T:
        o, state = dplr_cases.truth.rwkv7(**given, scale=16**-0.5)
    for form in (dplr_recurrence, lambda *x: dplr_chunkwise(*x, chunk_size=8)):
        got, final = form(q, k, v, a, b, w, given["initial_state"])
        assert got.shape == v.shape
        assert_close(final, state if T else given["initial_state"], rms=1e-12)
        if T:
            assert_close(got.transpose(1, 2), o, rms=1e-12)
    assert dplr_recurrence(q, k, v, a, b, w, output_final_state=False)[1] is None
    assert dplr_recurrence(*(x.bfloat16() for x in (q, k, v, a, b, w)))[0].dtype == torch.bfloat16


@cases(op=list(OPS), T=[1, 2, 15, 16, 17, 33, 100], dtype=list(EXACT))
def test_values_and_gradients_equal_the_token_loop(op, T, dtype):
    check(op, make(T=T, dtype=dtype), EXACT[dtype])


@cases(op=list(OPS), sizes=[(1, 1), (3, 5), (20, 33), (33, 20), (64, 64), (16, 48), (128, 16)])
def test_every_head_size_is_right(op, sizes):
    check(op, make(T=40, K=sizes[0], V=sizes[1]), 1e-12, scale=0.5)


@cases(decay=list(DECAYS), dtype=list(EXACT), op=list(OPS))
def test_every_decay_is_right(decay, dtype, op):
    check(op, make(B=1, T=41, decay=decay, dtype=dtype), EXACT[dtype])


@cases(tokens=[1, 3, 7, 19], decay=["all_40", "all_90", "to_40"])
def test_strong_decay_is_right_in_short_and_partial_chunks(tokens, decay):
    check("chunk", make(T=tokens, decay=decay, dtype=torch.float32), 2e-6)


@cases(total=[-0.99 * LIMIT, -1.01 * LIMIT, 0.99 * LIMIT, 1.01 * LIMIT])
def test_both_ways_agree_where_the_choice_changes(total):
    given = make(T=16, dtype=torch.float32)
    given["w"] = torch.full_like(given["w"], total / 16)
    given["initial_state"] *= 0.1
    check("chunk", given, 5e-6)


def test_strong_chunks_are_chosen_one_by_one():
    """A strong decay in one head's last chunk changes no bit of other heads or earlier chunks."""
    size = 16
    given = make(T=3 * size, dtype=torch.float32)
    want, _ = run(chunk_dplr_delta_rule, given, chunk_size=size)
    given["w"][1, 2 * size + 3, 0] = -60.0
    got, _ = run(chunk_dplr_delta_rule, given, chunk_size=size)
    same = torch.ones(got.shape[:3], dtype=torch.bool)
    same[1, 2 * size :, 0] = False
    assert torch.equal(got[same], want[same])
    assert not torch.equal(got[~same], want[~same])


@cases(chunk_size=[16, 32, 64], dtype=list(EXACT), decay=["layer_floor", "spikes"])
def test_chunk_size_changes_rounding_only(chunk_size, dtype, decay):
    check("chunk", make(T=150, decay=decay, dtype=dtype), EXACT[dtype], chunk_size=chunk_size)


@cases(cu=[None, CU], decay=["layer_floor", "spikes"])
def test_both_forms_of_the_scan_agree(cu, decay):
    """The one that GPUs get, run here."""
    given, chosen = make(T=100, cu=cu, decay=decay), recurrence.by_transitions
    try:
        recurrence.by_transitions = lambda device, matrices: True
        check("chunk", given, 1e-12, cu)
    finally:
        recurrence.by_transitions = chosen


@cases(op=list(OPS), cu=[CU, [0, 5], [0, 1, 2, 3], [0, 0, 0, 70]], decay=["layer", "spikes"])
def test_packed_sequences_equal_the_token_loop(op, cu, decay):
    check(op, make(cu=cu, decay=decay), 1e-12, cu)


@cases(op=list(OPS))
def test_sequences_without_tokens_pass_their_state_on(op):
    given = leaves(make(cu=[0, 0, 0]))
    o, state = run(OPS[op], given, cu=[0, 0, 0])
    assert o.shape == (1, 0, 2, 16)
    assert torch.equal(state, given["initial_state"])
    for B, T in ((2, 0), (0, 3)):
        given = make(B=B, T=T)
        o, state = run(OPS[op], given)
        assert o.shape == (B, T, 2, 16) and torch.equal(state, given["initial_state"])


@cases(packed=[False, True])
def test_reverse_walks_every_sequence_back_to_front(packed):
    cu = CU if packed else None
    given = make(cu=cu) if packed else make()
    bounds = CU if packed else [0, 37]

    def flip(x):
        return torch.cat([x[:, i:j].flip(1) for i, j in zip(bounds[:-1], bounds[1:])], dim=1)

    inputs = leaves(given)
    got = everything(run(fused_recurrent_dplr_delta_rule, inputs, cu=cu, reverse=True), inputs)
    mirrored = leaves(given)
    turned = {name: x if name == "initial_state" else flip(x) for name, x in mirrored.items()}
    o, state = run(fused_recurrent_dplr_delta_rule, turned, cu=cu)
    hold(got, everything((flip(o), state), mirrored), 1e-12)


@cases(op=list(OPS), decay=["layer", "to_40"], cu=[None, [0, 2, 2, 5]])
def test_gradients_equal_finite_differences(op, decay, cu):
    given = leaves(make(B=1, T=5, H=1, K=3, V=2, decay=decay, cu=cu))
    names, values = list(given), list(given.values())
    assert torch.autograd.gradcheck(lambda *x: run(OPS[op], dict(zip(names, x)), cu=cu), values)


@cases(op=list(OPS), missing=["initial_state", "dht", "do"])
def test_gradients_without_a_state_or_one_of_the_outputs(op, missing):
    given = make(T=20)
    if missing == "initial_state":
        del given["initial_state"]
    inputs = leaves(given)
    results = []
    for form in (lambda x: run(OPS[op], {"initial_state": None, **x}), lambda x: dplr_cases.truth.rwkv7(**x)):
        o, state = form(inputs)
        total = (o.sum() if missing != "do" else 0) + (state.sum() if missing != "dht" else 0)
        results.append(torch.autograd.grad(total, list(inputs.values()), allow_unused=True))
    for name, got, want in zip(inputs, *results):
        if want is None:
            assert got is None or not got.any(), name
        else:
            assert_close(got, want, rms=1e-12, name=name)


@cases(op=list(OPS), dtype=[torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(op, dtype):
    given = make(T=70, K=32, dtype=dtype)
    given["initial_state"] = given["initial_state"].float()
    inputs = leaves(given)
    got = everything(run(OPS[op], inputs), inputs)
    assert got["o"].dtype == dtype and got["ht"].dtype == torch.float32
    assert got["dr"].dtype == dtype and got["dinitial_state"].dtype == torch.float32
    hold(got, loop(given), 8e-3 if dtype == torch.bfloat16 else 1.5e-3)


def test_float64_of_one_input_is_enough():
    given = make(T=20, dtype=torch.float32)
    given["initial_state"] = given["initial_state"].double()
    assert run(chunk_dplr_delta_rule, given)[1].dtype == torch.float64
    assert run(fused_recurrent_dplr_delta_rule, given)[1].dtype == torch.float64


@cases(op=list(OPS), cu=[None, CU], sizes=[(16, 16), (5, 3)], dtype=list(EXACT))
def test_one_tensor_for_what_is_added_and_what_is_read_equals_two(op, cu, sizes, dtype):
    """Computed with one triangular system of half the size; the tensor's gradient is that of both places."""
    torch.manual_seed(0)
    rows, (key, value) = (2 if cu is None else 1), sizes
    q, k, a, gk = (torch.randn(rows, 100, 2, key, dtype=dtype) for _ in range(4))
    given = {"q": q, "k": torch.nn.functional.normalize(k, dim=-1), "v": torch.randn(rows, 100, 2, value, dtype=dtype),
             "a": -0.5 * torch.nn.functional.normalize(a, dim=-1), "gk": -gk.abs()}
    found = []
    for tied in (True, False):
        x = leaves(given)
        arguments = x["q"], x["k"], x["v"], x["a"], x["k"] if tied else x["k"].clone(), x["gk"]
        o, final = OPS[op](*arguments, output_final_state=True, cu_seqlens=None if cu is None else torch.tensor(cu))
        grads = torch.autograd.grad(o.sin().sum() + final.cos().sum(), list(x.values()))
        found.append(dict(zip(["o", "final", *x], [o, final, *grads])))
    hold(*found, EXACT[dtype] * (1 if dtype == torch.float64 else 5))

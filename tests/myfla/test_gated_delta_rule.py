"""The gated delta rule: chunked and recurrent against a float64 token loop, and against each other.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/test_gated_delta_rule.py``.
Long because the script is one of four that must stand alone.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(ROOT / "libs"))
sys.path.insert(0, str(ROOT / "tests" / "support"))

import torch  # noqa: E402

import truth  # noqa: E402
from myfla.ops._delta.chunk import plan, recurrence  # noqa: E402
from myfla.ops.gated_delta_rule import (  # noqa: E402
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    naive_chunk_gated_delta_rule,
    naive_recurrent_gated_delta_rule,
)
from myfla.ops.gated_delta_rule.gate import (  # noqa: E402
    fused_gdn_gate,
    gdn_gate_bwd,
    gdn_gate_chunk_cumsum,
    naive_gdn_gate,
)
from myfla.testing import assert_close, cases, raises, run_as_script  # noqa: E402

OPS = {"chunk": chunk_gated_delta_rule, "recurrent": fused_recurrent_gated_delta_rule}
GRADS = ("q", "k", "v", "g", "beta", "initial_state", "A_log", "dt_bias")


def make(B=2, T=37, H=2, HV=None, K=8, V=12, decay=1.0, in_kernel=False, neg=False, cu=None, dtype=torch.float64):
    """Random inputs as keyword arguments; raw ones (gate, sigmoid, norm left to the op) with ``in_kernel``."""
    HV = HV or H
    gen = torch.Generator().manual_seed(B * 1000 + T * 10 + HV + K)
    rand = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)  # noqa: E731
    uniform = lambda *shape: torch.rand(*shape, generator=gen, dtype=torch.float64)  # noqa: E731
    given = {"q": rand(B, T, H, K), "k": rand(B, T, H, K), "v": rand(B, T, HV, V)}
    if in_kernel:
        given.update(g=rand(B, T, HV), beta=rand(B, T, HV), A_log=uniform(HV), dt_bias=rand(HV))
    else:
        given["k"] = torch.nn.functional.normalize(given["k"], dim=-1)
        given.update(g=-decay * uniform(B, T, HV), beta=(2 if neg else 1) * uniform(B, T, HV))
    rows = B if cu is None else len(cu) - 1
    given["initial_state"] = rand(rows, HV, K, V)
    return {name: x.to(dtype) for name, x in given.items()}


def options(in_kernel, neg=False):
    """The op's own names for "everything in the kernel"."""
    return dict(
        use_qk_l2norm_in_kernel=in_kernel, use_gate_in_kernel=in_kernel, use_beta_sigmoid_in_kernel=in_kernel,
        allow_neg_eigval=in_kernel and neg,
    )  # fmt: skip


def loop(given, in_kernel=False, neg=False, **more):
    """The float64 truth."""
    flags = dict(l2norm=in_kernel, sigmoid=in_kernel, neg_eigval=in_kernel and neg)
    return truth.gated_delta_rule(**given, **flags, **more)


def leaves(given):
    return {name: x.clone().requires_grad_() for name, x in given.items()}


def gradients(outputs, inputs, retain_graph=False):
    """Gradients of a fixed random functional of outputs and final states, by name."""
    total = 0
    for i, x in enumerate(outputs):
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        total = total + (x.double() * weight).sum()
    return dict(zip(inputs, torch.autograd.grad(total, list(inputs.values()), retain_graph=retain_graph)))


@cases(op=list(OPS), T=[1, 2, 15, 16, 17, 64, 100], in_kernel=[False, True], neg=[False, True])
def test_values_and_gradients_equal_the_token_loop(op, T, in_kernel, neg):
    given = make(T=T, HV=4, in_kernel=in_kernel, neg=neg)
    want_in, got_in = leaves(given), leaves(given)
    want = loop(want_in, in_kernel, neg)
    got = OPS[op](**got_in, **options(in_kernel, neg), output_final_state=True)
    for name, a, b in zip(("o", "state"), got, want):
        assert_close(a, b, 1e-12, name=name)
    truths = gradients(want, want_in)
    for name, grad in gradients(got, got_in).items():
        assert_close(grad, truths[name], 1e-11, name=f"d{name}")


@cases(T=[1, 17, 100], cu=[None, [0, 1, 17, 17, 60, 100]], HV=[2, 4])
def test_scanning_by_transitions_equals_scanning_by_steps(T, cu, HV):
    cu = None if cu is None or T < 100 else torch.tensor(cu)
    given = make(B=1 if cu is not None else 2, T=T, HV=HV, cu=cu)
    found = []
    chosen = recurrence.by_transitions
    for form in (True, False):
        inputs = leaves(given)
        recurrence.by_transitions = lambda device, matrices, form=form: form
        try:
            outputs = chunk_gated_delta_rule(**inputs, cu_seqlens=cu, output_final_state=True)
            found.append((*outputs, *gradients(outputs, inputs).values()))
        finally:
            recurrence.by_transitions = chosen
    for a, b in zip(*found):
        assert_close(a, b, 1e-12)


@cases(T=[5, 17, 100], cu=[None, [0, 1, 17, 17, 60, 100]], ends=[False, True], keeps=[False, True])
def test_no_state_equals_a_state_of_zero(T, cu, ends, keeps):
    """Whatever is left out of the first chunk and of the last, and whether anybody asks for the final state."""
    cu = None if cu is None or T < 100 else torch.tensor(cu)
    given = make(B=1 if cu is not None else 2, T=T, HV=4, in_kernel=True, cu=cu)
    chosen, found = plan.saves_recomputable, []
    plan.saves_recomputable = lambda elements, device: keeps
    try:
        for told in (False, True):
            inputs = leaves(given)
            state = torch.zeros_like(inputs.pop("initial_state")).requires_grad_()
            o, final = chunk_gated_delta_rule(
                **inputs, **options(True), initial_state=state if told else None, cu_seqlens=cu, output_final_state=True
            )
            loss = o.square().sum()
            if ends or told:
                loss = loss + (final * ends).square().sum()
            found.append((o, final, *torch.autograd.grad(loss, list(inputs.values()))))
    finally:
        plan.saves_recomputable = chosen
    for a, b in zip(*found):
        assert_close(a, b, 1e-13)


@cases(states=[1, 2, 5], HV=[2, 4], cu=[None, [0, 1, 17, 17, 60, 100]], in_kernel=[False, True])
def test_heads_and_rows_in_groups_equal_all_at_once(states, HV, cu, in_kernel):
    cu = None if cu is None else torch.tensor(cu)
    given = make(B=1 if cu is not None else 3, T=100, HV=HV, in_kernel=in_kernel, cu=cu)
    found = []
    chosen = plan.states_together
    for together in (lambda elements, device: states, lambda elements, device: 1000):
        inputs = leaves(given)
        plan.states_together = together
        try:
            outputs = chunk_gated_delta_rule(**inputs, **options(in_kernel), cu_seqlens=cu, output_final_state=True)
            found.append((*outputs, *gradients(outputs, inputs).values()))
        finally:
            plan.states_together = chosen
    for a, b in zip(*found):
        assert_close(a, b, 1e-12)


@cases(blocks=[1, 3, 1000], transitions=[False, True], HV=[2, 4], cu=[None, [0, 1, 17, 17, 60, 100]])
def test_states_kept_for_the_backward_equal_states_found_again(blocks, transitions, HV, cu):
    cu = None if cu is None else torch.tensor(cu)
    given = make(B=1 if cu is not None else 2, T=100, HV=HV, in_kernel=True, cu=cu)
    found = []
    chosen = plan.saves_recomputable, plan.block_chunks, recurrence.by_transitions
    for keeps in ((True, True), (True, False), (False,)):  # the states, and then the tokens too
        inputs, answers = leaves(given), iter(keeps)
        plan.saves_recomputable = lambda elements, device, answers=answers: next(answers)
        plan.block_chunks = lambda elements, device: blocks
        recurrence.by_transitions = lambda device, matrices: transitions
        try:
            outputs = chunk_gated_delta_rule(**inputs, **options(True), cu_seqlens=cu, output_final_state=True)
            found.append((*outputs, *gradients(outputs, inputs, retain_graph=True).values()))
            again = gradients(outputs, inputs)
        finally:
            plan.saves_recomputable, plan.block_chunks, recurrence.by_transitions = chosen
        for a, b in zip(found[-1][2:], again.values()):
            assert torch.equal(a, b), "a backward pass has changed what was kept"
    for a, *others in zip(*found):
        for b in others:
            assert_close(a, b, 1e-12)


@cases(first=["inference", "training"], T=[20, 200])
def test_a_call_leaves_nothing_behind_for_the_next(first, T):
    """Buffers wait in their thread for the next call, of whatever size, in whatever mode."""
    small, large = make(T=20, dtype=torch.float32), make(T=T, dtype=torch.float32, in_kernel=True)
    want = chunk_gated_delta_rule(**small)[0]
    with torch.inference_mode(first == "inference"):
        chunk_gated_delta_rule(**{**large, "v": large["v"] * float("nan")}, **options(True))
    inputs = leaves(small)
    o = chunk_gated_delta_rule(**inputs)[0]
    assert torch.equal(o, want)
    before = o.detach().clone()
    with torch.inference_mode(first == "inference"):
        chunk_gated_delta_rule(**large, **options(True))
    assert torch.equal(o, before)
    assert all(bool(x.isfinite().all()) for x in gradients((o,), dict(inputs.items())).values())


@cases(op=list(OPS), T=[1, 16, 33, 130], K=[16, 64], decay=[0.0, 1.0, 40.0])
def test_float32_is_exact_to_rounding_at_every_decay(op, T, K, decay):
    given = make(T=T, K=K, V=K, decay=decay)
    want_in = leaves(given)
    want = loop(want_in)
    got_in = leaves({name: x.float() for name, x in given.items()})
    got = OPS[op](**got_in, output_final_state=True)
    for name, a, b in zip(("o", "state"), got, want):
        assert_close(a, b, 2e-6, name=name)
    truths = gradients(want, want_in)
    for name, grad in gradients(got, got_in).items():
        assert_close(grad, truths[name], 1e-5, name=f"d{name}")


@cases(op=list(OPS), value=[0.0, -1e-6, -40.0, -100.0, -1e5, float("-inf")])
def test_extreme_decays_are_finite_and_right(op, value):
    given = make(T=70, K=16, V=16, dtype=torch.float32)
    given["g"][:, 10::7] = value
    want_in, got_in = leaves(given), leaves(given)
    want = loop(want_in)
    got = OPS[op](**got_in, output_final_state=True)
    for name, a, b in zip(("o", "state"), got, want):
        assert_close(a, b, 2e-6, name=name)
    if op == "chunk":
        weights = gradients(got, got_in)
        for name, grad in weights.items():
            assert torch.isfinite(grad).all(), f"d{name} is not finite"


@cases(op=list(OPS))
def test_a_reset_gate_forgets_everything_before_it(op):
    given = make(T=50, dtype=torch.float32)
    given["g"][:, 20] = float("-inf")
    whole, _ = OPS[op](**given)
    given["initial_state"] = given["initial_state"] * 7 + 3
    given["v"][:, :20] += 5
    changed, _ = OPS[op](**given)
    assert_close(changed[:, 20:], whole[:, 20:], 1e-6)


@cases(op=list(OPS), cu=[[0, 37], [0, 1, 17, 17, 37], [0, 0, 5, 37, 37], [0, 36, 37]], HV=[2, 4])
def test_packed_equals_one_by_one(op, cu, HV):
    given = make(B=1, T=37, HV=HV, cu=cu)
    packed_in, single_in = leaves(given), leaves(given)
    packed = OPS[op](**packed_in, cu_seqlens=torch.tensor(cu), output_final_state=True)
    outputs, states = [], []
    for n, (start, stop) in enumerate(zip(cu[:-1], cu[1:])):
        part = {name: x[:, start:stop] for name, x in single_in.items() if name != "initial_state"}
        o, state = OPS[op](**part, initial_state=single_in["initial_state"][n : n + 1], output_final_state=True)
        outputs.append(o)
        states.append(state)
    want = (torch.cat(outputs, 1), torch.cat(states))
    for name, a, b in zip(("o", "state"), packed, want):
        assert_close(a, b, 1e-12, name=name)
    truths = gradients(want, single_in)
    for name, grad in gradients(packed, packed_in).items():
        assert_close(grad, truths[name], 1e-11, name=f"d{name}")


@cases(cuts=[[20], [0, 1, 2, 3, 30], [16, 32], [37], [5, 5, 5]])
def test_any_split_of_the_recurrent_form_gives_the_same_bits(cuts):
    given = make(T=37, K=16, V=16, in_kernel=True, dtype=torch.float32)
    flags = options(True)
    want = fused_recurrent_gated_delta_rule(**given, **flags, output_final_state=True)
    state, outputs = given["initial_state"], []
    sequence = {name: x for name, x in given.items() if x.dim() > 2 and name != "initial_state"}
    fixed = {name: given[name] for name in ("A_log", "dt_bias")}
    for start, stop in zip([0, *cuts], [*cuts, 37]):
        part = {name: x[:, start:stop] for name, x in sequence.items()}
        o, state = fused_recurrent_gated_delta_rule(
            **part, **fixed, **flags, initial_state=state, output_final_state=True
        )
        outputs.append(o)
    assert torch.equal(torch.cat(outputs, 1), want[0])
    assert torch.equal(state, want[1])


@cases(cuts=[[20], [0, 1, 2, 70, 90], [16, 32, 64]], decay=[0.0, 1.0, 100.0])
def test_any_split_of_the_chunk_form_equals_the_whole(cuts, decay):
    given = make(T=100, K=16, V=16, decay=decay, dtype=torch.float32)
    want = chunk_gated_delta_rule(**given, output_final_state=True)
    state, outputs = given.pop("initial_state"), []
    for start, stop in zip([0, *cuts], [*cuts, 100]):
        part = {name: x[:, start:stop] for name, x in given.items()}
        o, state = chunk_gated_delta_rule(**part, initial_state=state, output_final_state=True)
        outputs.append(o)
    assert_close(torch.cat(outputs, 1), want[0], 2e-6)
    assert_close(state, want[1], 2e-6)


@cases(op=list(OPS), T=[0, 1])
def test_no_token_leaves_the_state(op, T):
    given = leaves(make(T=T, dtype=torch.float32))
    o, state = OPS[op](**given, output_final_state=True)
    assert o.shape == given["v"].shape
    if T == 0:
        assert torch.equal(state, given["initial_state"])
        state.sum().backward()
        assert torch.equal(given["initial_state"].grad, torch.ones_like(state))


@cases(op=list(OPS))
def test_an_empty_batch_gives_empty_results(op):
    given = make(B=1, T=5, dtype=torch.float32)
    empty = {name: x[:0] for name, x in given.items()}
    o, state = OPS[op](**empty, output_final_state=True)
    assert o.shape == (0, 5, 2, 12) and state.shape == (0, 2, 8, 12)


@cases(op=list(OPS), HV=[2, 6])
def test_value_first_states_are_the_same_states_transposed(op, HV):
    given = make(HV=HV)
    want = OPS[op](**given, output_final_state=True)
    turned = dict(given, initial_state=given["initial_state"].transpose(2, 3).contiguous())
    got = OPS[op](**turned, state_v_first=True, output_final_state=True)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1].transpose(2, 3))


@cases(op=list(OPS), HV=[4, 6])
def test_grouped_value_heads_share_queries_and_keys(op, HV):
    given = make(HV=HV)
    repeated = dict(given)
    for name in ("q", "k"):
        repeated[name] = given[name].repeat_interleave(HV // 2, dim=2)
    for a, b in zip(OPS[op](**given, output_final_state=True), OPS[op](**repeated, output_final_state=True)):
        assert_close(a, b, 1e-13)


@cases(op=list(OPS), dtype=[torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_have_the_input_dtype_and_states_are_wide(op, dtype):
    given = make(dtype=dtype)
    inputs = leaves(given)
    o, state = OPS[op](**inputs, output_final_state=True)
    assert o.dtype == dtype
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want, want_state = loop(given)
    bound = {torch.bfloat16: 8e-3, torch.float16: 1.5e-3, torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    assert_close(o, want, bound)
    assert_close(state, want_state, min(bound, 1e-6))
    (o.float().sum() + state.sum()).backward()
    for name, x in inputs.items():
        assert x.grad is not None and x.grad.dtype == dtype, name


@cases(op=list(OPS))
def test_the_final_state_is_returned_only_when_asked_for(op):
    given = make()
    assert OPS[op](**given)[1] is None
    assert OPS[op](**given, output_final_state=True)[1].shape == (2, 2, 8, 12)


@cases(op=list(OPS), grad=[False, True])
def test_inputs_are_never_written(op, grad):
    given = make(T=40, dtype=torch.float32)
    before = {name: x.clone() for name, x in given.items()}
    inputs = leaves(given) if grad else given
    o, state = OPS[op](**inputs, output_final_state=True)
    if grad:
        (o.sum() + state.sum()).backward()
    for name, x in inputs.items():
        assert torch.equal(x.detach(), before[name]), name


@cases(op=list(OPS))
def test_strided_inputs_equal_contiguous_ones(op):
    given = make(T=40)
    strided = {}
    for name, x in given.items():
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        strided[name] = wide[..., ::2]
    for a, b in zip(OPS[op](**strided, output_final_state=True), OPS[op](**given, output_final_state=True)):
        assert_close(a, b, 1e-14)


def test_the_chunk_forward_is_one_node_with_a_backward_of_its_own():
    inputs = leaves(make())
    o, state = chunk_gated_delta_rule(**inputs, output_final_state=True)
    assert o.grad_fn is state.grad_fn and "ChunkRule" in type(o.grad_fn).__name__
    found = [type(node).__name__ for node, _ in o.grad_fn.next_functions if node is not None]
    assert found and set(found) == {"AccumulateGrad"}


@cases(in_kernel=[False, True], cu=[None, [0, 2, 2, 3, 5]])
def test_gradcheck_and_second_derivatives_of_the_chunk_form(in_kernel, cu):
    given = make(B=1, T=5, H=1, HV=2, K=3, V=2, in_kernel=in_kernel, cu=cu)
    offsets = None if cu is None else torch.tensor(cu)

    def function(*tensors):
        named = dict(zip(given, tensors))
        return chunk_gated_delta_rule(
            **named, **options(in_kernel, True), cu_seqlens=offsets, output_final_state=True
        )

    inputs = [x.requires_grad_() for x in given.values()]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@cases(kind=["g", "gk", "gv", "all"], elementwise=[False, True])
def test_channel_decays_and_channel_strengths_of_the_recurrent_form(kind, elementwise):
    given = make(T=9)
    gen = torch.Generator().manual_seed(5)
    g = given.pop("g")
    decays = {
        "g": g,
        "gk": -torch.rand(2, 9, 2, 8, generator=gen, dtype=torch.float64),
        "gv": -torch.rand(2, 9, 2, 12, generator=gen, dtype=torch.float64),
    }
    decays = decays if kind == "all" else {kind: decays[kind]}
    if elementwise:
        given["beta"] = torch.rand(2, 9, 2, 12, generator=gen, dtype=torch.float64)
    o, state = fused_recurrent_gated_delta_rule(**given, **decays, output_final_state=True)
    s, outputs = given["initial_state"], []
    for t in range(9):
        if "g" in decays:
            s = s * decays["g"][:, t, :, None, None].exp()
        if "gk" in decays:
            s = s * decays["gk"][:, t, :, :, None].exp()
        if "gv" in decays:
            s = s * decays["gv"][:, t, :, None, :].exp()
        beta = given["beta"][:, t] if elementwise else given["beta"][:, t, :, None]
        delta = beta * (given["v"][:, t] - torch.einsum("bhkv,bhk->bhv", s, given["k"][:, t]))
        s = s + given["k"][:, t, :, :, None] * delta[:, :, None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", s, given["q"][:, t]) * 8**-0.5)
    assert_close(o, torch.stack(outputs, 1), 1e-13)
    assert_close(state, s, 1e-13)


def test_beta_left_out_means_ones_also_with_grouped_heads():
    given = make(HV=4)
    given["beta"] = torch.ones_like(given["beta"])
    want = fused_recurrent_gated_delta_rule(**given)[0]
    del given["beta"]
    assert torch.equal(fused_recurrent_gated_delta_rule(**given)[0], want)


@cases(T=[1, 7, 64, 65], chunk_size=[16, 64])
def test_naive_forms_equal_the_token_loop(T, chunk_size):
    given = make(T=T)
    want = loop(given)
    keywords = dict(output_final_state=True)
    for got in (
        naive_recurrent_gated_delta_rule(**given, **keywords),
        naive_chunk_gated_delta_rule(**given, chunk_size=chunk_size, **keywords),
    ):
        assert_close(got[0], want[0], 1e-12)
        assert_close(got[1], want[1], 1e-12)


@cases(chunk_size=[16, 32, 64])
def test_the_chunk_size_changes_rounding_only(chunk_size):
    given = make(T=150, dtype=torch.float64)
    want = loop(given)
    got = chunk_gated_delta_rule(**given, chunk_size=chunk_size, output_final_state=True)
    assert_close(got[0], want[0], 1e-12)
    assert_close(got[1], want[1], 1e-12)


@cases(op=list(OPS))
def test_rows_of_a_batch_do_not_see_each_other(op):
    given = make(B=3, T=40, dtype=torch.float32)
    want = OPS[op](**given, output_final_state=True)
    poisoned = {name: x.clone() for name, x in given.items()}
    for x in poisoned.values():
        x[1] = float("nan")
    got = OPS[op](**poisoned, output_final_state=True)
    for a, b in zip(got, want):
        assert torch.equal(a[0], b[0]) and torch.equal(a[2], b[2])
        assert torch.isnan(a[1]).any()
    order = torch.tensor([2, 0, 1])
    for a, b in zip(OPS[op](**{name: x[order] for name, x in given.items()}, output_final_state=True), want):
        assert torch.equal(a, b[order])


@cases(op=list(OPS), T=[5, 40, 70])
def test_the_future_does_not_change_the_past(op, T):
    given = make(T=100, dtype=torch.float32)
    want, _ = OPS[op](**given)
    for name in ("q", "k", "v", "g", "beta"):
        given[name][:, T:] = given[name][:, T:] * 3 - 1
    got, _ = OPS[op](**given)
    assert torch.equal(got[:, :T], want[:, :T])


@cases(op=list(OPS))
def test_pads_as_identity_updates_leave_the_state(op):
    given = make(T=40, dtype=torch.float32)
    given["g"][:, 30:], given["beta"][:, 30:] = 0, 0
    padded = OPS[op](**given, output_final_state=True)[1]
    short = {name: x if name == "initial_state" else x[:, :30] for name, x in given.items()}
    assert_close(padded, OPS[op](**short, output_final_state=True)[1], 1e-7)


def test_zero_keys_have_finite_gradients():
    given = make(T=20, in_kernel=True, dtype=torch.float32)
    given["k"][:, 3:9] = 0
    given["q"][:, 5] = 0
    for op in OPS.values():
        inputs = leaves(given)
        o, _ = op(**inputs, **options(True))
        o.sum().backward()
        for name in ("q", "k", "v", "g", "beta"):
            assert torch.isfinite(inputs[name].grad).all() and inputs[name].grad.abs().max() <= 1e4, name


@cases(bias=[False, True], dtype=[torch.float32, torch.float64])
def test_gate_and_its_backward_equal_the_formula(bias, dtype):
    g, A = torch.randn(2, 9, 3, dtype=dtype, requires_grad=True), torch.rand(3, dtype=dtype, requires_grad=True)
    b = torch.randn(3, dtype=dtype, requires_grad=True) if bias else None
    want = -A.double().exp() * torch.nn.functional.softplus(g.double() + (b.double() if bias else 0))
    for gate in (naive_gdn_gate, fused_gdn_gate):
        got = gate(g, A, b)
        assert got.dtype == dtype
        assert_close(got, want, 1e-6)
    dy = torch.randn_like(want).to(dtype)
    inputs = [g, A] + ([b] if bias else [])
    wants = torch.autograd.grad((want * dy.double()).sum(), inputs)
    for got, grad in zip(gdn_gate_bwd(g, A, b, dy), wants):
        assert_close(got, grad, 1e-5)
    assert naive_gdn_gate(g, A, b, output_dtype=torch.bfloat16).dtype == torch.bfloat16


@cases(cu=[None, [0, 5, 5, 21]])
def test_chunk_sums_of_the_gate_restart_at_chunks_and_sequences(cu):
    g, A = torch.randn(1, 21, 2), torch.rand(2)
    decay = naive_gdn_gate(g, A)
    got = gdn_gate_chunk_cumsum(g, A, 8, scale=2.0, cu_seqlens=None if cu is None else torch.tensor(cu))
    want = torch.empty_like(decay)
    for start, stop in zip((cu or [0, 21])[:-1], (cu or [0, 21])[1:]):
        for t in range(start, stop, 8):
            want[:, t : min(t + 8, stop)] = decay[:, t : min(t + 8, stop)].cumsum(1) * 2
    assert_close(got, want, 1e-6)


@cases(op=list(OPS))
def test_bad_input_is_refused_by_name(op):
    f, good = OPS[op], make(B=1, T=5)
    bad = lambda **change: dict(good, **change)  # noqa: E731
    name = f.__name__
    refusals = [
        (bad(q=good["q"][0]), ("q", "[B, T, heads, size]", "(5, 2, 8)")),
        (bad(q=good["q"].long()), ("q", "floating point", "int64")),
        (bad(k=good["k"][:, :, :1]), ("k", "as many heads as q", "got 1")),
        (bad(k=good["k"][..., :3]), ("k", "shape of q")),
        (bad(v=good["v"][:, :4]), ("v", "batch and length of q", "(1, 4)")),
        (bad(v=torch.zeros(1, 5, 3, 4)), ("v", "multiple of q's H=2", "got 3")),
        (bad(v=torch.zeros(1, 5, 1, 4)), ("v", "multiple of q's H=2", "got 1")),
        (bad(g=good["g"][:, :3]), ("g", "must have shape (1, 5, 2)", "(1, 3, 2)")),
        (bad(g="x"), ("g", "floating point tensor", "str")),
        (bad(beta=good["beta"].int()), ("beta", "floating point tensor", "int32")),
        (bad(beta=good["beta"][..., :1]), ("beta", "must have shape (1, 5, 2)")),
        (bad(initial_state=torch.zeros(2, 2, 8, 12)), ("initial_state", "[N, HV, K, V]", "(2, 2, 8, 12)")),
        (bad(initial_state=torch.zeros(1, 2, 12, 8)), ("initial_state", "(1, 2, 8, 12)")),
        (bad(initial_state=torch.zeros(1, 2, 8, 12).int()), ("initial_state", "floating point", "int32")),
        (bad(initial_state=3), ("initial_state", "int")),
        (bad(state_v_first=True), ("initial_state", "[N, HV, V, K]")),
        (bad(cu_seqlens=torch.tensor([1, 5])), ("cu_seqlens", "start at 0", "1")),
        (bad(cu_seqlens=torch.tensor([0, 4, 3, 5])), ("cu_seqlens", "not decrease")),
        (bad(cu_seqlens=torch.tensor([0, 4])), ("cu_seqlens", "end at", "5", "4")),
        (bad(cu_seqlens=torch.tensor([0.0, 5.0])), ("cu_seqlens", "int")),
        (bad(use_gate_in_kernel=True), ("A_log", "use_gate_in_kernel=True")),
        (bad(use_gate_in_kernel=True, A_log=torch.zeros(3)), ("A_log", "[HV] = (2,)", "(3,)")),
        (bad(use_gate_in_kernel=True, A_log=torch.zeros(2), dt_bias=torch.zeros(2, 1)), ("dt_bias", "(2, 1)")),
        (bad(allow_neg_eigval=True), ("allow_neg_eigval", "use_beta_sigmoid_in_kernel=True")),
        (bad(head_first=True), ("head_first", "[B, T, H, D]")),
        (bad(transpose_state_layout=True, state_v_first=True), ("transpose_state_layout", "state_v_first")),
    ]
    if op == "chunk":
        refusals += [
            (bad(chunk_size=48), ("chunk_size", "16, 32 or 64", "48")),
            (bad(cp_context=object()), ("cp_context", "None")),
        ]
    else:
        missing = {key: value for key, value in good.items() if key != "beta"}
        refusals += [
            (dict(missing, use_beta_sigmoid_in_kernel=True), ("beta", "is required")),
            (bad(g=None, use_gate_in_kernel=True, A_log=torch.zeros(2)), ("g", "is required")),
            (bad(gk=torch.zeros(1, 5, 2, 3)), ("gk", "(1, 5, 2, 8)")),
        ]
    for arguments, parts in refusals:
        with raises(ValueError, name, *parts):
            f(**arguments)
    two = {key: value.repeat(2, *[1] * (value.dim() - 1)) for key, value in good.items()}
    with raises(ValueError, name, "cu_seqlens", "[1, total, ...]", "2"):
        f(**two, cu_seqlens=torch.tensor([0, 5]))
    with raises(TypeError, name, "use_qk_l2norm_in_kernal", "did you mean 'use_qk_l2norm_in_kernel'"):
        f(**good, use_qk_l2norm_in_kernal=True)
    assert f(**good, head_first=False)[0].shape == (1, 5, 2, 12)


if __name__ == "__main__":
    run_as_script(globals())

"""Kimi Delta Attention's rule: both forms against a float64 token loop written apart, and the official recordings."""

import pytest
import torch
import torch.nn.functional as F

import goldens
from myfla.ops.kda import chunk_kda, fused_recurrent_kda, naive_chunk_kda, naive_recurrent_kda
from myfla.testing import assert_close, cases, raises

FORMS = {"chunk": chunk_kda, "recurrent": fused_recurrent_kda}
ALL = dict(use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True)
GOLDEN = {name: case for name, case in goldens.load("ops_family").items() if case.params["op"] == "kda"}
HELD = {"float32": 1e-5, "bfloat16": 8e-3}


def make(B=2, T=37, H=2, HV=4, K=8, V=6, decay=1.0, raw=False, rows=None, dtype=torch.float64):
    draw = torch.Generator().manual_seed(T * 100 + HV)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    given = {"q": normal(B, T, H, K), "k": normal(B, T, H, K), "v": normal(B, T, HV, V), "g": normal(B, T, HV, K),
             "beta": normal(B, T, HV)}  # fmt: skip
    if raw:
        given.update(A_log=normal(HV), dt_bias=normal(HV * K))
    else:
        given["k"] = F.normalize(given["k"], dim=-1)
        given["g"] = -decay * given["g"].abs()
        given["beta"] = given["beta"].sigmoid()
    given["initial_state"] = normal(rows or B, HV, K, V)
    return {name: x.to(dtype) for name, x in given.items()}


def loop(q, k, v, g, beta, initial_state, A_log=None, dt_bias=None, raw=False, lower_bound=None, neg=False, scale=None):
    """The rule, one token after another, in float64."""
    q, k, v, g, beta, state = (x.double() for x in (q, k, v, g, beta, initial_state))
    if raw:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        shifted = g + dt_bias.double().view(g.shape[2:])
        rate = A_log.double().exp().view(-1, 1)
        g = -rate * F.softplus(shifted) if lower_bound is None else lower_bound * torch.sigmoid(rate * shifted)
        beta = torch.sigmoid(beta) * (2 if neg else 1)
    heads, outputs = v.shape[2] // q.shape[2], []
    for t in range(q.shape[1]):
        key, query = (x[:, t].repeat_interleave(heads, 1).unsqueeze(-1) for x in (k, q))
        state = state * g[:, t].exp().unsqueeze(-1)
        error = v[:, t] - (key * state).sum(2)
        state = state + key * (beta[:, t, :, None] * error).unsqueeze(2)
        outputs.append((query * state).sum(2) * (q.shape[3] ** -0.5 if scale is None else scale))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), state


def with_grads(function, given):
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    o, final = function(**leaves)
    draw = torch.Generator().manual_seed(3)
    loss = sum((x.double() * torch.randn(x.shape, generator=draw, dtype=torch.float64)).sum() for x in (o, final))
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"d{name}": torch.zeros_like(x) if dx is None else dx for (name, x), dx in zip(leaves.items(), grads)}
    return {"o": o, "final": final, **found}


@cases(form=list(FORMS), T=[0, 1, 15, 37, 70], raw=[False, True], HV=[2, 4])
def test_values_and_gradients_equal_the_token_loop(form, T, raw, HV):
    given, options = make(T=T, HV=HV, raw=raw), ALL if raw else {}
    got = with_grads(lambda **x: FORMS[form](**x, **options, output_final_state=True), given)
    want = with_grads(lambda **x: loop(**x, raw=raw), given)
    for key in want:
        assert_close(got[key], want[key], rms=1e-11, name=key)


@cases(form=list(FORMS), lower_bound=[None, -5.0, -0.5], neg=[False, True])
def test_every_gate(form, lower_bound, neg):
    given, options = make(raw=True), dict(ALL, allow_neg_eigval=neg, lower_bound=lower_bound)
    got = with_grads(lambda **x: FORMS[form](**x, **options, output_final_state=True), given)
    want = with_grads(lambda **x: loop(**x, raw=True, neg=neg, lower_bound=lower_bound), given)
    for key in want:
        assert_close(got[key], want[key], rms=1e-11, name=key)


@cases(form=list(FORMS), decay=[0.0, 1e-3, 3.0, 20.0, 200.0], T=[17, 64])
def test_every_decay_is_exact(form, decay, T):
    given = make(T=T, decay=decay)
    got = with_grads(lambda **x: FORMS[form](**x, output_final_state=True), given)
    want = with_grads(loop, given)
    for key in want:
        assert_close(got[key], want[key], rms=1e-11, name=key)


@cases(form=list(FORMS), channels=["one", "all"])
def test_a_decay_of_minus_infinity_forgets_its_channel(form, channels):
    given = make(T=40, dtype=torch.float32)
    given["g"][:, 11, :, slice(0, 1) if channels == "one" else slice(None)] = -float("inf")
    want = loop(**given)
    for mine, exact in zip(FORMS[form](**given, output_final_state=True), want):
        assert_close(mine, exact, 1e-5)


@cases(form=list(FORMS), T=[100], keeps=[True, False], blocks=[1, 3, 1000])
def test_blocks_and_what_is_kept_change_rounding_only(form, T, keeps, blocks, monkeypatch):
    from myfla.ops._delta.chunk import plan

    given = make(T=T, decay=2.0)
    want = with_grads(loop, given)
    monkeypatch.setattr(plan, "saves_recomputable", lambda elements, device: keeps)
    monkeypatch.setattr(plan, "block_chunks", lambda elements, device: blocks)
    got = with_grads(lambda **x: FORMS[form](**x, output_final_state=True), given)
    for key in want:
        assert_close(got[key], want[key], rms=1e-11, name=key)


@cases(form=list(FORMS), v_first=[False, True])
def test_packed_sequences_equal_each_alone(form, v_first):
    cu = torch.tensor([0, 0, 1, 20, 45])
    given = make(B=1, T=45, rows=4, decay=3.0)
    state = given.pop("initial_state")
    turn = (lambda x: x.transpose(2, 3).contiguous()) if v_first else (lambda x: x)
    o, final = FORMS[form](
        **given, initial_state=turn(state), cu_seqlens=cu, output_final_state=True, state_v_first=v_first
    )
    for n, (start, stop) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist())):
        alone, last = loop(**{name: x[:, start:stop] for name, x in given.items()}, initial_state=state[n : n + 1])
        assert_close(o[:, start:stop], alone, rms=1e-12)
        assert_close(final[n : n + 1], turn(last), rms=1e-12)


@cases(cut=[0, 1, 20, 36], dtype=[torch.float32, torch.bfloat16], sizes=[(8, 6), (64, 32), (48, 100)])
def test_any_split_gives_the_same_bits(cut, dtype, sizes):
    given = make(K=sizes[0], V=sizes[1], raw=True, dtype=torch.float32)
    state, gate = given.pop("initial_state"), {name: given.pop(name) for name in ("A_log", "dt_bias")}
    given = {name: x.to(dtype) for name, x in given.items()}
    more = dict(**gate, **ALL, output_final_state=True)
    o, final = fused_recurrent_kda(**given, initial_state=state, **more)
    outputs = []
    for part in (slice(0, cut), slice(cut, None)):
        some, state = fused_recurrent_kda(**{n: x[:, part] for n, x in given.items()}, initial_state=state, **more)
        outputs.append(some)
    assert torch.equal(torch.cat(outputs, 1), o) and torch.equal(state, final)


def test_in_place_the_given_state_becomes_the_final_one():
    given = make(T=1, dtype=torch.float32)
    want = fused_recurrent_kda(**given, output_final_state=True)
    got = fused_recurrent_kda(**given, output_final_state=True, inplace_final_state=True)
    assert got[1] is given["initial_state"] and all(map(torch.equal, got, want))


def test_a_beta_for_each_channel():
    given = make(T=9)
    given["beta"] = torch.rand(2, 9, 4, 6, dtype=torch.float64)
    o, final = fused_recurrent_kda(**given, output_final_state=True)
    for channel in range(6):
        one = {**given, "beta": given["beta"][..., channel]}
        want, last = loop(**one)
        assert_close(o[..., channel], want[..., channel], rms=1e-12)
        assert_close(final[..., channel], last[..., channel], rms=1e-12)


@cases(form=list(FORMS), dtype=[torch.bfloat16, torch.float16, torch.float32])
def test_number_formats(form, dtype):
    given = {name: x if name == "initial_state" else x.to(dtype) for name, x in make(dtype=torch.float32).items()}
    o, final = FORMS[form](**given, output_final_state=True)
    want, last = loop(**given)
    assert o.dtype == dtype and final.dtype == torch.float32
    assert_close(o, want, {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-6}[dtype])
    assert_close(final, last, 1e-6)


@cases(naive=[naive_recurrent_kda, naive_chunk_kda], T=[0, 1, 70])
def test_the_specification_is_the_loop(naive, T):
    given = make(T=T)
    for mine, exact in zip(naive(**given, output_final_state=True), loop(**given)):
        assert_close(mine, exact, rms=1e-12)


@cases(form=list(FORMS))
def test_derivatives_of_both_orders_are_those_of_the_function(form):
    given = make(B=1, T=5, H=1, HV=2, K=2, V=2, raw=True)
    leaves = [x.requires_grad_() for x in given.values()]

    def function(*x):
        return FORMS[form](**dict(zip(given, x)), **ALL, output_final_state=True)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with PyTorch 2.0")
def test_transforms_see_the_same_function():
    given = make(T=20)
    want = chunk_kda(**given)[0]
    got = torch.func.vmap(lambda q: chunk_kda(**{**given, "q": q})[0])(torch.stack([given["q"], 2 * given["q"]]))
    assert_close(got[0], want, rms=1e-12)
    assert_close(got[1], 2 * want, rms=1e-12)


def test_backends_agree_and_refuse_with_a_reason():
    given = make(T=20)
    want = chunk_kda(**given, backend="naive")[0]
    assert_close(chunk_kda(**given, backend="torch")[0], want, rms=1e-12)
    with raises(ValueError, "chunk_kda", "backend", "'fla'", "use backend='auto' or 'torch'"):
        chunk_kda(**given, backend="fla")
    beta = torch.rand(2, 20, 4, 6)
    with raises(ValueError, "fused_recurrent_kda", "backend", "beta for each channel", "'naive'"):
        fused_recurrent_kda(**{**given, "beta": beta}, backend="naive")


def test_messages_name_the_field_and_the_way_out():
    given = make()
    for change, parts in (
        (dict(g=given["g"][..., 0]), ("g", "must have shape (2, 37, 4, 8)")),
        (dict(beta=given["g"]), ("beta", "must have shape (2, 37, 4)")),
        (dict(chunk_size=7), ("chunk_size", "16, 32 or 64")),
        (dict(use_gate_in_kernel=True), ("A_log", "no lower_bound", "pass A_log [HV]")),
        (dict(use_gate_in_kernel=True, A_log=torch.zeros(3)), ("A_log", "must hold [HV] = 4")),
        (dict(use_gate_in_kernel=True, A_log=torch.zeros(4), dt_bias=torch.zeros(4)), ("dt_bias", "[HV * K] = 32")),
        (dict(use_gate_in_kernel=True, A_log=torch.zeros(4), safe_gate=True), ("lower_bound", "-5", "safe_gate")),
        (dict(lower_bound=1.0), ("lower_bound", "must be negative")),
        (dict(allow_neg_eigval=True), ("allow_neg_eigval", "use_beta_sigmoid_in_kernel=True")),
        (dict(cp_context=3), ("cp_context", "must be None", "split the batch")),
    ):
        with raises(ValueError, "chunk_kda", *parts):
            chunk_kda(**{**given, **change})
    for op in FORMS.values():
        with raises(TypeError, "unknown keyword", "initial_stat"):
            op(**given, initial_stat=None)


def golden(case, form):
    p, given = case.params, case.group("inputs")
    leaves = {name: x.clone().requires_grad_() for name, x in given.items() if name not in ("do", "dht")}
    named = {name: x for name, x in leaves.items() if name != "h0"}
    o, final = FORMS[form](
        **named, scale=p["scale"], initial_state=leaves.get("h0"), output_final_state=True,
        use_qk_l2norm_in_kernel=p["l2n"], use_gate_in_kernel=p["gate"], use_beta_sigmoid_in_kernel=p["sigm"],
        allow_neg_eigval=p["neg"], lower_bound=p["lb"], cu_seqlens=None if p["cu"] is None else torch.tensor(p["cu"]),
    )  # fmt: skip
    loss = (o.double() * given["do"].double()).sum() + (final.double() * given["dht"].double()).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"o": o, "ht": final, **{f"d{name}": grad for name, grad in zip(leaves, grads)}}


@cases(name=list(GOLDEN), form=list(FORMS))
def test_every_recorded_case_equals_the_truth_and_the_official_kernel(name, form):
    assert len(GOLDEN) == 12
    case = GOLDEN[name]
    got = golden(case, form)
    assert set(got) == set(case.group("truth"))
    for key, want in case.group("truth").items():
        assert_close(got[key], want, HELD[case.params["dtype"]], name=f"{name} {key}")
    for key, want in case.group("chunk").items():
        assert_close(got[key], want, 8e-3, name=f"{name} {key}")

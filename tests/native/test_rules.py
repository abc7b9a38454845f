"""The compiled delta rules, forward and backward, against float64 token loops."""

import pytest
import torch

from myfla.testing import cases
from rule_configs import Config, Guarded, draw, truth

EPS = {torch.float32: 6e-8, torch.bfloat16: 4e-3, torch.float16: 5e-4}
QUICK, SLOW, TOGETHER = 240, 10_000, 24


def close(got, want, dtype, name, terms=0.0):
    """Within rounding: of the output's format, and of float32 sums of terms that are as large as ``terms``."""
    error = (got.double() - want).abs().max().item() if got.numel() else 0.0
    largest = want.abs().max().item() if want.numel() else 0.0
    bound = EPS[dtype] * largest + 4e-6 * max(largest, terms, 1)
    assert error <= bound, f"{name}: off by {error:.1e}, largest {largest:.1e}, allowed {bound:.1e}"


def in_parts(rules, rule, inputs, state, dtype, seed):
    """The same in two calls, the second in place: any split gives the same bits."""
    tokens = inputs.q.shape[1]
    if rule.cu_seqlens is not None or tokens == 0:
        return rules.forward(rule, inputs, state, out_dtype=dtype)[:2]
    cut = seed % tokens
    spans = slice(cut), slice(cut, None)
    first, second = (rules.Inputs(*(x if x is None else x[:, span] for x in inputs)) for span in spans)
    a, middle, _ = rules.forward(rule, first, state, out_dtype=dtype)
    b, final, _ = rules.forward(rule, second, middle, out_dtype=dtype, final=middle)
    assert final is middle
    return torch.cat([a, b], dim=1), final


def check(native, seed):
    """One random call: results, gradients, and nothing touched that is not its own."""
    rules = native.rules
    config = draw(seed)
    native.library.set_level(("base", "avx2", "avx512")[seed % 3])
    guarded, before = Guarded(), [b.clone() for b in config.buffers]
    plain, rules._empty = rules._empty, guarded.empty
    t = dict(config.tensors)
    state, A_log, dt_bias = t.pop("initial_state", None), t.pop("A_log", None), t.pop("dt_bias", None)
    kind = {"gated": rules.GATED, "kda": rules.KDA, "dplr": rules.DPLR}[config.kind]
    inputs = rules.Inputs(t["q"], t["k"], t["v"], t["g"], t.get("beta", t.get("a")), t.get("b"))
    rule = rules.Rule(kind, A_log=A_log, dt_bias=dt_bias, **config.options)
    try:
        o, final, kept = rules.forward(rule, inputs, state, out_dtype=config.out_dtype, keep=True)
        grads, dstate, dA_log, ddt_bias = rules.backward(rule, inputs, state, kept, **config.gradients)
        parts = in_parts(rules, rule, inputs, state, config.out_dtype, seed)
    finally:
        rules._empty = plain
    for x, y in zip(parts, (o, final)):
        assert torch.equal(x.nan_to_num(), y.nan_to_num()), "in two parts, other bits"
    assert guarded.intact(), "written outside of an output"
    for buffer, old in zip(config.buffers, before):
        assert torch.equal(buffer.view(torch.uint8), old.view(torch.uint8)), "an input was written"
    want_o, want_final, want, terms = truth(config)
    close(o, want_o, config.out_dtype, "o")
    close(final, want_final, torch.float32, "final")
    names = ("q", "k", "v", "g", "a" if "a" in t else "beta", "b")
    got = {name: x for name, x in zip(names, grads) if x is not None}
    got.update({"initial_state": dstate} if state is not None else {})
    got.update({"A_log": dA_log} if A_log is not None else {}, **({"dt_bias": ddt_bias} if dt_bias is not None else {}))
    assert set(got) == set(want)
    for name, x in got.items():
        close(x, want[name], x.dtype, f"gradient of {name}", terms.get(name, 0.0))


@cases(first=range(0, QUICK, TOGETHER))
def test_random_calls_equal_the_truth_and_stay_inside_their_tensors(native, first):
    for seed in range(first, first + TOGETHER):
        try:
            check(native, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@cases(seed=[90315, 70387], level=["base", "avx2", "avx512"])
def test_gradients_of_decays_whose_terms_cancel_keep_the_bar(native, monkeypatch, seed, level):
    """Found by many random calls: one key channel, 100 value channels, weak decays; 65 x 64 numbers of both signs."""
    native.library.set_level(level)
    with monkeypatch.context() as context:
        context.setattr(native.library, "set_level", lambda _: level)
        check(native, seed)


@pytest.mark.slow
@cases(part=range(8))
def test_ten_thousand_random_calls_equal_the_truth(native, part):
    for seed in range(QUICK + part, QUICK + SLOW, 8):
        try:
            check(native, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@cases(kind=["kda", "dplr"], size=[(16, 24), (40, 64)], seed=range(3))
def test_chunks_go_where_decays_allow_and_tokens_elsewhere(native, kind, size, seed):
    """Blocks of 16 tokens whose decays range from none to all, those near the border between both ways among them."""
    rules, (K, V), T, H = native.rules, size, 293, 2
    native.library.set_level(("base", "avx2", "avx512")[seed])
    torch.manual_seed(seed)
    strong = torch.tensor([0, 0.1, 2, 4, 5.1, 5.3, 6, 20, 1e4])[torch.randint(9, (1, T // 16 + 1, 1, 1))]
    g = -strong.repeat_interleave(16, 1)[:, :T] * (0.9 + 0.1 * torch.rand(1, T, H, K))
    q, k = (torch.nn.functional.normalize(torch.randn(1, T, H, K), dim=-1) for _ in range(2))
    x = {"q": q, "k": k, "v": torch.randn(1, T, H, V), "g": g, "initial_state": torch.randn(1, H, K, V)}
    x.update({"a": -k, "b": k * torch.rand(1, T, H, K)} if kind == "dplr" else {"beta": torch.rand(1, T, H)})
    options = {"scale": 1.0, "l2norm": False, "beta_scale": 0, "cu_seqlens": None, "lower_bound": None}
    gradients = {"do": torch.randn(1, T, H, V), "dfinal": torch.randn(1, H, K, V)}
    _, _, want, _ = truth(Config(kind, x, options, torch.float32, gradients, []))
    rule = rules.Rule(getattr(rules, kind.upper()), 1.0)
    inputs = rules.Inputs(q, k, x["v"], g, x.get("beta", x.get("a")), x.get("b"))
    kept = rules.forward(rule, inputs, x["initial_state"], keep=True)[2]
    grads, dstate, _, _ = rules.backward(rule, inputs, x["initial_state"], kept, **gradients)
    names = ("q", "k", "v", "g", "a" if kind == "dplr" else "beta", "b")
    for name, got in (*zip(names, grads), ("initial_state", dstate)):
        if got is not None:
            close(got, want[name], torch.float32, f"gradient of {name}")


@cases(kind=["gated", "kda", "dplr", "kda gate", "kda bound"], size=[(32, 32), (7, 19), (64, 128)],
       first=["key", "value"])
def test_a_step_has_the_bits_of_a_sequence(native, kind, size, first):
    """Where the state lies, in place or not, keys first or values first; with the gate in the kernel or before it."""
    rules, (K, V), N, H = native.rules, size, 3, 2
    kind, gate = kind.split()[0], kind.partition(" ")[2]
    q, k, a, b = (torch.randn(N, 1, H, K) for _ in range(4))
    v, g, beta = torch.randn(N, 1, H, V), -torch.rand(N, 1, H), torch.rand(N, 1, H)
    g = g if kind == "gated" else -torch.rand(N, 1, H, K)
    state = torch.randn(N, H, K, V) if first == "key" else torch.randn(N, H, V, K).transpose(2, 3)
    rest = (a, b) if kind == "dplr" else (beta, None)
    A_log, dt_bias = (torch.randn(H), torch.randn(H * K)) if gate else (None, None)
    rule = rules.Rule(getattr(rules, kind.upper()), 0.5, True, A_log, dt_bias, 2 if gate else 0,
                      lower_bound=-5.0 if gate == "bound" else None)
    o, final, _ = rules.forward(rule, rules.Inputs(q, k, v, g, *rest), state, keep=True)
    new = torch.empty_like(state)
    plan = rules.Plan(rule, rules.Inputs(q, k, v, g, *rest), state, state)
    for to in (new, state):
        assert torch.equal(plan.step((q, k, v, g, *rest, A_log, dt_bias, state), to), o)
        assert torch.equal(to, final)


@cases(kind=["gated", "kda", "dplr"])
def test_threads_change_no_bit(native, monkeypatch, kind):
    rules, B, T, H, K = native.rules, 3, 50, 2, 40
    q, k, v, b, do = (torch.randn(B, T, H, K) for _ in range(5))
    g = -torch.rand(B, T, H) if kind == "gated" else -torch.rand(B, T, H, K)
    last = (0.1 * torch.randn(B, T, H, K), 0.1 * b) if kind == "dplr" else (torch.rand(B, T, H), None)
    rule, inputs = rules.Rule(getattr(rules, kind.upper()), 0.2, kind != "dplr"), rules.Inputs(q, k, v, g, *last)
    state, runs = torch.randn(B, H, K, K), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(rules, "threads", lambda: threads)  # noqa: B023
        o, final, kept = rules.forward(rule, inputs, state, keep=True)
        grads, dinitial, _, _ = rules.backward(rule, inputs, state, kept, do, None)
        runs.append([o, final, dinitial, *(x for x in grads if x is not None)])
    for other in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], other))

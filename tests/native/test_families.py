"""Every member of the family where the compiled kernels are installed."""

import pytest
import torch

import family
import family_layers
from myfla.models.utils import Cache
from myfla.ops._delta.plans import forget_plans
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.kda import chunk_kda, fused_recurrent_kda
from myfla.ops.kda.inputs import KdaActivation
from myfla.testing import assert_close, cases

SUMS = ("gla", "simple_gla", "ssd")
"""Those that correct nothing: the plain form trains them faster, the compiled kernels do the rest."""


@cases(name=list(family.MEMBERS), form=["chunk", "recurrent"], value_heads=[2, 4], tokens=[1, 37])
def test_auto_equals_the_token_loop_with_every_gradient(native, name, form, value_heads, tokens):
    given = family.inputs(name, tokens=tokens, value_heads=value_heads, dtype=torch.float32)
    state = family.state_for(given)
    got, want = family.gradients(name, form, given, state), family.gradients(name, "truth", given, state)
    for key in want:
        assert_close(got[key], want[key], rms=2e-6, largest=1e-5, name=f"{name} {key}")


@cases(name=list(family.MEMBERS), form=["chunk", "recurrent"], cu=[None, (0, 0, 1, 20, 37)])
def test_native_equals_the_token_loop_with_every_gradient(native, name, form, cu):
    given = family.inputs(name, batch=2 if cu is None else 1, tokens=37, value_heads=4, dtype=torch.float32)
    more = {} if cu is None else {"cu_seqlens": torch.tensor(cu)}
    state = family.state_for(given, 2 if cu is None else 4)
    got = family.gradients(name, form, given, state, backend="native", **more)
    want = family.gradients(name, "truth", given, state, **more)
    for key in want:
        assert_close(got[key], want[key], rms=2e-6, largest=1e-5, name=f"{name} {key}")


def computed(monkeypatch, kernels):
    """The list to which every call of the compiled rules adds its name."""
    calls = []
    forget_plans()
    for name in ("step", "forward", "backward"):
        own = getattr(kernels.rules.Plan, name)
        monkeypatch.setattr(kernels.rules.Plan, name, lambda *x, own=own, name=name, **more: calls.append(name) or own(
            *x, **more))
    return calls


@cases(name=list(family.MEMBERS), tokens=[1, 37], grads=[False, True], form=["chunk", "recurrent"])
def test_auto_takes_the_compiled_kernels_where_they_fit(native, monkeypatch, name, tokens, grads, form):
    calls = computed(monkeypatch, native)
    given = family.inputs(name, tokens=tokens, value_heads=4, dtype=torch.float32)
    if grads:
        family.gradients(name, form, given, family.state_for(given))
    else:
        family.run(name, form, given)
    wanted = [] if name in SUMS and grads else ["forward", "backward"] if grads else ["forward"]
    assert [call.replace("step", "forward") for call in calls] == wanted


@cases(name=family_layers.ALL)
def test_a_layers_decoding_takes_them_too(native, monkeypatch, name):
    layer, cache, calls = family_layers.build(name, torch.float32), Cache(), computed(monkeypatch, native)
    steps = []
    plan = native.steps.plan_conv_layer
    monkeypatch.setattr(native.steps, "plan_conv_layer", lambda *x: steps.append(1) or plan(*x))
    with torch.no_grad():
        layer(torch.randn(2, 70, family_layers.D), past_key_values=cache, use_cache=True)
        assert calls == ["forward"]
        layer(torch.randn(2, 1, family_layers.D), past_key_values=cache, use_cache=True)
    assert len(calls) + len(steps) == 2


# of ssd, PyTorch makes the time steps: the last bits of its softplus depend on where in memory a number lies
@cases(name=[name for name in family.MEMBERS if name != "ssd"])
def test_any_split_of_the_recurrent_form_gives_the_same_bits(native, name):
    given = family.inputs(name, dtype=torch.float32, value_heads=4)
    whole, last = family.run(name, "recurrent", given)
    for cut in (1, 20, 36):
        head = {key: x[:, : cut * (x.shape[1] // 37)] for key, x in given.items()}
        tail = {key: x[:, cut * (x.shape[1] // 37) :] for key, x in given.items()}
        o, state = family.run(name, "recurrent", head)
        rest, final = family.run(name, "recurrent", tail, initial_state=state)
        assert torch.equal(torch.cat([o, rest], 1), whole) and torch.equal(final, last)


@cases(key=[8, 33], batch=[1, 3], dtype=[torch.float32, torch.bfloat16])
def test_gates_of_kda_have_the_same_bits_in_any_split(native, monkeypatch, key, batch, dtype):
    calls = computed(monkeypatch, native)
    given = {name: torch.randn_like(x).to(dtype) for name, x in family.inputs(
        "kda", batch, heads=2, value_heads=4, key=key, value=5).items()}
    gates = dict(use_gate_in_kernel=True, A_log=torch.randn(4), dt_bias=torch.randn(4 * key),
                 use_beta_sigmoid_in_kernel=True, use_qk_l2norm_in_kernel=True)
    whole, last = family.run("kda", "recurrent", given, **gates)
    for size in (1, 9):
        outputs, state = [], None
        for start in range(0, 37, size):
            part = {name: x[:, start : start + size] for name, x in given.items()}
            o, state = family.run("kda", "recurrent", part, initial_state=state, **gates)
            outputs.append(o)
        assert torch.equal(torch.cat(outputs, 1), whole) and torch.equal(state, last)
    assert len(calls) == 1 + 37 + 5


def kda_gate(bound, tokens=37, dtype=torch.float32):
    """Leaves of a call of KDA with its gates in the op, A_log and dt_bias in shapes of old checkpoints, and options."""
    torch.manual_seed(0)
    shapes = dict(q=(2, tokens, 2, 8), k=(2, tokens, 2, 8), v=(2, tokens, 4, 5), g=(2, tokens, 4, 8),
                  beta=(2, tokens, 4), A_log=(1, 1, 4, 1), dt_bias=(4, 8), initial_state=(2, 4, 8, 5))
    x = {name: torch.randn(shape).to(dtype).requires_grad_() for name, shape in shapes.items()}
    return x, dict(use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, lower_bound=bound,
                   use_qk_l2norm_in_kernel=True, output_final_state=True)


@cases(op=[chunk_kda, fused_recurrent_kda], bound=[None, -4.0])
def test_kdas_gates_are_computed_in_the_kernels_with_every_gradient(native, monkeypatch, op, bound):
    found = {}
    for dtype in (torch.float64, torch.float32):
        x, options = kda_gate(bound, dtype=dtype)
        if dtype is torch.float32:
            monkeypatch.setattr(KdaActivation, "gates", lambda *_: pytest.fail("activated before the kernel"))
        results = op(**x, **options)
        sum((y.double() * y.double().cos()).sum() for y in results).backward()
        found[dtype] = dict(o=results[0], final=results[1], **{name: t.grad for name, t in x.items()})
    for name, want in found[torch.float64].items():
        assert_close(found[torch.float32][name], want, rms=2e-6, largest=1e-5, name=name)


@cases(bound=[None, -4.0], inplace=[False, True])
def test_a_step_of_kda_with_its_gates_equals_float64(native, monkeypatch, bound, inplace):
    x, options = kda_gate(bound, tokens=1)
    with torch.no_grad():
        want = fused_recurrent_kda(**{name: t.double() for name, t in x.items()}, **options)
        monkeypatch.setattr(KdaActivation, "gates", lambda *_: pytest.fail("activated before the kernel"))
        calls = computed(monkeypatch, native)
        for _ in range(2):
            state = x["initial_state"].detach().clone()
            o, final = fused_recurrent_kda(**{**x, "initial_state": state}, **options, inplace_final_state=inplace)
            assert (final is state) == inplace
            assert_close(o, want[0], rms=2e-6, largest=1e-5)
            assert_close(final, want[1], rms=2e-6, largest=1e-5)
    assert calls == ["step"] * 2


V_FIRST = ("kda", "gla", "simple_gla", "gdn2")


@cases(name=V_FIRST, inplace=[False, True], size=[(16, 32), (5, 16), (33, 7)])
def test_steps_on_states_with_values_first_have_the_bits_of_keys_first(native, monkeypatch, name, inplace, size):
    key, value = size
    calls = computed(monkeypatch, native)
    given = family.inputs(name, tokens=1, value_heads=4, key=key, value=value, dtype=torch.float32)
    state = torch.randn(2, 4, key, value)
    o, final = family.run(name, "recurrent", given, initial_state=state)
    for _ in range(2):
        turned = state.transpose(2, 3).contiguous()
        got = family.run(name, "recurrent", given, initial_state=turned, state_v_first=True,
                         inplace_final_state=inplace)
        assert torch.equal(got[0], o) and torch.equal(got[1], final.transpose(2, 3)) and got[1].is_contiguous()
        assert (got[1] is turned) == inplace and (inplace or torch.equal(turned, state.transpose(2, 3)))
    assert calls == ["step"] * 3


@cases(op=[chunk_gated_delta_rule, fused_recurrent_gated_delta_rule], state_dtype=[None, torch.float32, torch.bfloat16])
def test_whole_sequences_with_values_first_have_the_bits_of_keys_first(native, op, state_dtype):
    q, k, v = (torch.randn(1, 70, 2, size) for size in (20, 20, 35))
    given = dict(q=q, k=k, v=v, g=-torch.rand(1, 70, 2), beta=torch.rand(1, 70, 2), output_final_state=True,
                 cu_seqlens=torch.tensor([0, 20, 20, 70]))
    state = None if state_dtype is None else torch.randn(3, 2, 20, 35, dtype=state_dtype)
    turned = None if state is None else state.transpose(2, 3).contiguous()
    o, final = op(**given, initial_state=state)
    got = op(**given, initial_state=turned, state_v_first=True)
    assert torch.equal(got[0], o) and torch.equal(got[1], final.transpose(2, 3)) and got[1].is_contiguous()


@cases(name=family_layers.ALL)
def test_layers_give_the_numbers_of_the_plain_form_in_training_and_streaming(native, name):
    found = []
    for backend in ("auto", "torch"):
        layer = family_layers.build(name, torch.float32, backend=backend)
        torch.manual_seed(0)
        x = torch.randn(2, 23, family_layers.D)
        whole = layer(x)[0]
        whole.sin().sum().backward()
        cache, parts = Cache(), []
        with torch.no_grad():
            for i, j in ((0, 20), (20, 21), (21, 23)):
                parts.append(layer(x[:, i:j], past_key_values=cache, use_cache=True)[0])
        assert_close(torch.cat(parts, 1), whole, rms=2e-6)
        found.append((whole, *(p.grad for p in layer.parameters() if p.grad is not None)))
    for got, want in zip(*found):
        assert_close(got, want, rms=1e-5, largest=1e-3)

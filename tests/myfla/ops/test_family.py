"""What holds for every member of the delta rule's family: both forms against the float64 token loop."""

import pytest
import torch

import family
from myfla.testing import assert_close, cases, max_error
from myfla.utils.errors import BackendError

NAMES = list(family.MEMBERS)
FORMS = ["chunk", "recurrent"]


@cases(name=NAMES, form=FORMS, value_heads=[2, 4], tokens=[0, 1, 37, 70])
def test_float64_equals_the_token_loop_with_every_gradient(name, form, value_heads, tokens):
    given = family.inputs(name, tokens=tokens, value_heads=value_heads)
    state = family.state_for(given)
    got, want = family.gradients(name, form, given, state), family.gradients(name, "truth", given, state)
    for key in want:
        assert_close(got[key], want[key], rms=1e-11, name=f"{name} {key}")


@cases(name=NAMES, form=FORMS)
def test_packed_sequences_equal_each_alone(name, form):
    given = family.inputs(name, batch=1, tokens=45)
    steps, cu = family.MEMBERS[name].steps, torch.tensor([0, 0, 1, 20, 45])
    state = family.state_for(given, rows=4)
    o, final = family.run(name, form, given, initial_state=state, cu_seqlens=cu)
    for n, (start, stop) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist())):
        part = {key: x[:, start * (x.shape[1] // 45) : stop * (x.shape[1] // 45)] for key, x in given.items()}
        assert all(x.shape[1] in (stop - start, steps * (stop - start)) for x in part.values())
        alone, last = family.run(name, form, part, initial_state=state[n : n + 1])
        assert_close(o[:, start:stop], alone, rms=1e-12)
        assert_close(final[n : n + 1], last, rms=1e-12)


@cases(name=NAMES, first=["chunk", "recurrent"], second=["chunk", "recurrent"], cut=[0, 1, 20, 37])
def test_any_split_equals_whole(name, first, second, cut):
    given = family.inputs(name)
    whole, last = family.run(name, "chunk", given)
    head = {key: x[:, : cut * (x.shape[1] // 37)] for key, x in given.items()}
    tail = {key: x[:, cut * (x.shape[1] // 37) :] for key, x in given.items()}
    o, state = family.run(name, first, head)
    rest, final = family.run(name, second, tail, initial_state=state)
    assert_close(torch.cat([o, rest], 1), whole, rms=1e-12)
    assert_close(final, last, rms=1e-12)


@cases(name=NAMES, form=FORMS, dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_states_are_float32_and_as_exact_as_float32(name, form, dtype):
    """The rule of half-precision inputs is computed on their own values: only the outputs are rounded to them."""
    given = family.inputs(name, dtype=dtype, decay=0.2)
    o, final = family.run(name, form, given)
    want, last = family.truth(name, given)
    assert final.dtype == torch.float32 and o.dtype == dtype
    assert_close(final, last, rms=2e-6, name=name)
    assert_close(o, want, rms={torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype], name=name)


@cases(name=NAMES, form=FORMS)
def test_strong_decays_stay_exact(name, form):
    if not {"g", "gk", "dt"} & set(family.MEMBERS[name].inputs):
        pytest.skip("has no decay")
    given = family.inputs(name, decay=60.0, tokens=70, dtype=torch.float32)
    state = family.state_for(given)
    got, want = family.gradients(name, form, given, state), family.gradients(name, "truth", given, state)
    for key in want:
        assert torch.isfinite(got[key]).all(), key
        assert_close(got[key], want[key], rms=2e-5, name=f"{name} {key}")


@cases(name=NAMES, form=FORMS)
def test_keys_are_normalised_where_asked(name, form):
    if not family.MEMBERS[name].l2norm:
        pytest.skip("has no such option")
    given = family.inputs(name)
    given["k"] = 3 * given["k"]
    o, _ = family.run(name, form, given, use_qk_l2norm_in_kernel=True)
    assert_close(o, family.truth(name, given, l2norm=True)[0], rms=1e-11)


@cases(name=NAMES, form=FORMS)
def test_gradients_pass_gradcheck(name, form):
    given = family.inputs(name, batch=1, tokens=5, heads=1, value_heads=1, key=3, value=2)
    leaves = [x.requires_grad_() for x in given.values()]
    assert torch.autograd.gradcheck(lambda *xs: family.run(name, form, dict(zip(given, xs))), leaves)


@cases(name=[name for name in NAMES if family.MEMBERS[name].scaled])
def test_the_scale_is_a_factor_of_the_outputs(name):
    given = family.inputs(name)
    one, two = (family.run(name, "chunk", given, scale=scale)[0] for scale in (1.0, 2.0))
    assert max_error(2 * one, two) < 1e-14


@cases(name=NAMES)
def test_the_recurrent_form_writes_over_a_state_where_allowed(name):
    given = {key: x[:, : x.shape[1] // 37] for key, x in family.inputs(name, dtype=torch.float32).items()}
    state = family.state_for(given)
    want = family.run(name, "recurrent", given, initial_state=state.clone())[1]
    final = family.run(name, "recurrent", given, initial_state=state, inplace_final_state=True)[1]
    assert final.data_ptr() == state.data_ptr() and torch.equal(state, want)


@cases(name=NAMES, form=FORMS)
def test_messages_name_the_op_that_was_called(name, form):
    member = family.MEMBERS[name]
    op = member.chunk if form == "chunk" else member.recurrent
    for part in ("q", "v"):
        given = family.inputs(name)
        given[part] = given[part][..., 0]
        with pytest.raises(ValueError, match=f"^{op.__name__}: "):
            family.run(name, form, given)
    spoilt = [("initial_state", torch.zeros(1)), ("backend", "nobody's"), ("backend", "fla")]
    spoilt += [("scale", "text")] if member.scaled else []
    spoilt += [("chunk_size", 7)] if form == "chunk" else [("inplace_final_state", True)]
    for field, value in spoilt:
        with pytest.raises((ValueError, BackendError), match=f"^{op.__name__}: {field}"):
            family.run(name, form, family.inputs(name), **{field: value})

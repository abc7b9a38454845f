"""One token in the operations that a compiler for GPUs joins: the same rule, on a CPU and without a compiler."""

import torch

import truth
from myfla.ops._delta.call import Call
from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.traced.step import delta_step
from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
from myfla.testing import assert_close, cases


def draw(HV, value_first):
    x = dict(q=torch.randn(3, 1, 2, 8), k=torch.randn(3, 1, 2, 8), v=torch.randn(3, 1, HV, 6),
             g=-torch.rand(3, 1, HV), beta=torch.rand(3, 1, HV), initial_state=torch.randn(3, HV, 8, 6))  # fmt: skip
    x = {name: t.double() for name, t in x.items()}
    if value_first:
        x["initial_state"] = x["initial_state"].transpose(2, 3).contiguous().transpose(2, 3)
    return x


def step(q, k, v, g, beta, initial_state, l2norm, inplace=False, gk=None, gv=None):
    x = (q, k, v, g, beta)
    return delta_step(Call(
        "step", GATED_DELTA, "recurrent", x, initial_state, 0.3, None, q.shape[0], v.dtype, l2norm, inplace=inplace,
        channel_decays=(gk, gv),
    ))  # fmt: skip


@cases(HV=[2, 4], l2norm=[True, False], value_first=[True, False])
def test_one_token_equals_the_loop(HV, l2norm, value_first):
    x = draw(HV, value_first)
    for mine, want in zip(step(**x, l2norm=l2norm), truth.gated_delta_rule(**x, scale=0.3, l2norm=l2norm)):
        assert_close(mine, want, 1e-14)


@cases(value_first=[True, False])
def test_in_place_the_given_state_becomes_the_final_one(value_first):
    x = draw(2, value_first)
    o, final = step(**x, l2norm=True)
    kept = x["initial_state"].clone()
    again, same = step(**x, l2norm=True, inplace=True)
    assert same is x["initial_state"] and torch.equal(same, final) and torch.equal(again, o)
    assert not torch.equal(same, kept)


def test_decays_and_strengths_of_channels_and_no_state_are_those_of_the_recurrence():
    x = draw(2, False)
    del x["initial_state"]
    x.update(gk=-torch.rand(3, 1, 2, 8).double(), gv=-torch.rand(3, 1, 2, 6).double(),
             beta=torch.rand(3, 1, 2, 6).double())  # fmt: skip
    more = dict(scale=0.3, output_final_state=True, backend="torch")
    first = step(**x, initial_state=None, l2norm=False)
    want = fused_recurrent_gated_delta_rule(**x, **more)
    second = step(**x, initial_state=first[1], l2norm=False)
    then = fused_recurrent_gated_delta_rule(**x, initial_state=want[1], **more)
    for mine, theirs in zip((*first, *second), (*want, *then)):
        assert_close(mine, theirs, 1e-14)


def test_rounding_happens_once():
    x = {name: t.bfloat16() if name in ("q", "k", "v") else t.float() for name, t in draw(2, False).items()}
    o, final = step(**x, l2norm=True)
    want, last = truth.gated_delta_rule(**{name: t.double() for name, t in x.items()}, scale=0.3, l2norm=True)
    assert o.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert_close(o, want, 3e-3)
    assert_close(final, last, 1e-6)

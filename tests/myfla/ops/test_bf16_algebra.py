"""The form for matrix units, on a CPU in float64: every family is its token loop, dense and packed."""

import torch

import dplr_cases
from bf16_cases import MAKE, NAMES, PACKED, call, double, errors, gated, loop
from myfla.ops._delta.bf16.layout import dense_layout, packed_layout
from myfla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from myfla.testing import assert_close, cases

SHAPES = [(1, 1, 1, 1, 4, 4), (2, 33, 2, 4, 8, 12), (1, 100, 1, 1, 8, 4)]
CPU = torch.device("cpu")
DECAYS = {"gated": [0.0, 0.1, 3.0, 100.0], "kda": [0.0, 0.1, 3.0, 100.0], "dplr": list(dplr_cases.DECAYS)}
WEAK_AND_STRONG = [(family, decay) for family, decays in DECAYS.items() for decay in decays]
# Decays too strong for a gradient of their own leave the rounding errors of what cancels, far below the others.
CLOSE = {"gated": 1e-11, "kda": 1e-11, "dplr": 1e-9}


@cases(shape=SHAPES, chunk=[16, 64], case=WEAK_AND_STRONG)
def test_forward_and_backward_equal_the_token_loop(shape, chunk, case):
    family, decay = case
    x = double(MAKE[family](*shape, decay=decay))
    assert max(errors(family, x, l2norm=chunk == 16, chunk=chunk).values()) < CLOSE[family]


@cases(case=WEAK_AND_STRONG, chunk=[32])
def test_packed_sequences_equal_the_token_loop(case, chunk):
    family, decay = case
    x = double(MAKE[family](decay=decay, cu=PACKED))
    assert max(errors(family, x, cu=PACKED, l2norm=True, chunk=chunk).values()) < CLOSE[family]


@cases(family=list(MAKE), parts=[2, 4], tokens=[128, 115, 300])
def test_parts_side_by_side_equal_one_scan(family, parts, tokens):
    x = double(MAKE[family](2, tokens))
    layout = dense_layout(2, tokens, 2, CPU, 16, parts)
    assert layout.rows == 2 * parts
    assert max(errors(family, x, l2norm=True, layout=layout).values()) < 1e-11


@cases(family=list(MAKE), parts=[2, 5])
def test_parts_of_packed_sequences_equal_one_scan(family, parts):
    x = double(MAKE[family](cu=PACKED))
    layout = packed_layout(torch.tensor(PACKED), 2, CPU, 16, parts)
    assert layout.rows > 4  # of four sequences with tokens
    assert max(errors(family, x, cu=PACKED, l2norm=True, layout=layout).values()) < 1e-11


@cases(family=list(MAKE), cu=[None, PACKED])
def test_without_a_state_it_starts_from_zeros(family, cu):
    x = double(MAKE[family](cu=cu))
    x["initial_state"] = None
    o, final = call(family, x, 0.3, cu)
    zeros = torch.zeros_like(final)
    for mine, theirs in zip((o, final), loop(family, {**x, "initial_state": zeros}, 0.3, cu)):
        assert_close(mine, theirs, 1e-12)


@cases(tokens=[1, 16, 100], bound=[-0.607, -5.0, -1000.0], family=["dplr", "kda"])
def test_a_bound_on_the_decays_changes_rounding_only(tokens, bound, family):
    given = double(MAKE[family](2, tokens))
    assert max(errors(family, given, lower_bound=bound).values()) < 1e-12


def test_endless_decays_and_writes_of_zero_are_exact():
    x = double(gated(1, 70, 1, 1, 8, 8, 1.0))
    x["g"][0, [0, 5, 20, 66]] = -float("inf")
    x["beta"][0, [1, 3, 64]] = 0
    assert max(errors("gated", x, l2norm=True).values()) < 1e-11


@cases(family=list(MAKE))
def test_tokens_need_not_be_dense(family):
    x = double(MAKE[family]())
    views = {name: t.transpose(1, 2).contiguous().transpose(1, 2) for name, t in x.items() if t.dim() == 4}
    views["initial_state"] = x["initial_state"].transpose(2, 3).contiguous().transpose(2, 3)
    for mine, theirs in zip(call(family, {**x, **views}, 0.3), call(family, x, 0.3)):
        assert torch.equal(mine, theirs)


@cases(family=["gated", "dplr"])
def test_second_derivatives_go_through_the_function_given(family):
    x = double(MAKE[family](1, 5, 1, 1, 3, 2))
    names = NAMES[family]
    leaves = [x[name].requires_grad_() for name in names]

    def plain(*tensors):
        *tokens, state = tensors
        if family == "gated":
            return loop(family, dict(zip(names, tensors)), 0.3)
        r, k, v, a, b, w = tokens
        o, final = dplr_recurrence(
            *(t.transpose(1, 2) for t in (r * 0.3 * r.shape[3] ** 0.5, k, v, a, b, w)), initial_state=state
        )  # fmt: skip
        return o.transpose(1, 2), final

    def run(*leaves):
        return call(family, dict(zip(names, leaves)), 0.3, formula=plain)

    assert torch.autograd.gradgradcheck(run, leaves)

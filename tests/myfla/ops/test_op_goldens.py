"""The gated delta rule against what the official kernels returned on a GPU."""

import pytest
import torch

import goldens
import truth
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.testing import assert_close, cases

CASES = goldens.load("ops_gated_delta_rule")
OPS = {"chunk": chunk_gated_delta_rule, "recurrent": fused_recurrent_gated_delta_rule}
INPUTS = {"q": "q", "k": "k", "v": "v", "g": "g", "beta": "beta", "h0": "initial_state", "A_log": "A_log",
          "dt_bias": "dt_bias"}  # fmt: skip
OWN = {"float32": 1e-5, "bfloat16": 8e-3, "float16": 1.5e-3}
SCALARS = ("dg", "dbeta", "dA_log", "ddt_bias")
OFFICIAL = 8e-3  # of the official chunk kernel, whose dots are TF32 or half precision


def run(case, op, dtype=None):
    """Outputs, final state and gradients, named as in the golden file; states K-first."""
    p, given = case.params, case.group("inputs")
    tensors = {name: given[name] for name in INPUTS if name in given}
    if dtype is not None:
        tensors = {name: x.to(dtype) for name, x in tensors.items()}
    tensors = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    named = {INPUTS[name]: x for name, x in tensors.items()}
    if op is None:
        flags = dict(l2norm=p["l2n"], sigmoid=p["sigm"], neg_eigval=p["neg"])
        o, state = truth.gated_delta_rule(**named, **flags, scale=p["scale"], cu_seqlens=p["cu"])
    else:
        cu = None if p["cu"] is None else torch.tensor(p["cu"])
        if p["vf"]:
            named["initial_state"] = named["initial_state"].transpose(2, 3)
        o, state = op(
            **named, scale=p["scale"], cu_seqlens=cu, state_v_first=p["vf"], output_final_state=True,
            use_qk_l2norm_in_kernel=p["l2n"], use_gate_in_kernel=p["gate"], use_beta_sigmoid_in_kernel=p["sigm"],
            allow_neg_eigval=p["neg"],
        )  # fmt: skip
        state = state.transpose(2, 3) if p["vf"] else state
    loss = (o.double() * given["do"].double()).sum() + (state.double() * given["dht"].double()).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()))
    return dict(o=o, ht=state, **{f"d{name}": grad for name, grad in zip(tensors, grads)})


@pytest.fixture(scope="module")
def truths():
    return {name: run(case, None, torch.float64) for name, case in CASES.items()}


def test_all_nineteen_cases_are_there():
    assert len(CASES) == 19


@cases(name=list(CASES), op=list(OPS))
def test_every_case_equals_the_truth(name, op, truths):
    case = CASES[name]
    got = run(case, OPS[op])
    assert set(got) == set(truths[name])
    for key, want in truths[name].items():
        bound = OWN[case.params["dtype"]]
        if case.params["dtype"] == "float32" and key in SCALARS:
            bound = 1e-4
        assert_close(got[key], want, bound, name=f"{name} {key}")


@cases(name=list(CASES), group=["chunk", "recurrent"])
def test_the_official_kernels_agree_within_their_own_error(name, group):
    case = CASES[name]
    got = run(case, OPS[group])
    official = case.group(group)
    assert {"o", "ht"} <= set(official)
    exact = group == "recurrent" and case.params["dtype"] == "float32"
    for key, want in official.items():
        want = want.transpose(2, 3) if key == "ht" and case.params["vf"] else want
        bound = 1e-5 if exact else 6e-2 if key in SCALARS else OFFICIAL
        assert_close(got[key], want, bound, name=f"{name} {key}")

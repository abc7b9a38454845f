"""The wider family's ops against what the official kernels returned on a GPU."""

import torch

import family
import goldens
from myfla.testing import assert_close, cases

CASES = goldens.load("ops_family")
MEMBERS = {"delta": "delta_rule", "product": "gated_delta_product", "kda": "kda", "gla": "gla"}
OURS = [name for name, case in CASES.items() if case.params["op"] in MEMBERS]
OWN = {"float32": 1e-5, "bfloat16": 8e-3}
OFFICIAL = 8e-3
SCALARS = ("dA_log", "ddt_bias")


def run(case, form):
    """Outputs, final state and gradients, named as in the golden file."""
    p, given = case.params, case.group("inputs")
    names = [name for name in given if name not in ("do", "dht")]
    leaves = {name: given[name].clone().requires_grad_() for name in names}
    named = {name: x for name, x in leaves.items() if name != "h0"}
    member = family.MEMBERS[MEMBERS[p["op"]]]
    op = member.chunk if form == "chunk" else member.recurrent
    options = {"num_householder": p["nh"]} if p["op"] == "product" else {}
    if p["op"] != "gla":
        options["use_qk_l2norm_in_kernel"] = p["l2n"]
    if p["op"] == "kda":
        options.update(use_gate_in_kernel=p["gate"], use_beta_sigmoid_in_kernel=p["sigm"], allow_neg_eigval=p["neg"],
                       lower_bound=p["lb"])
    if form == "recurrent":
        named.update((theirs, named.pop(ours)) for theirs, ours in member.renamed)
    if p["op"] == "product":
        named.setdefault("g", None)
    o, final = op(
        **named, **options, scale=p["scale"], initial_state=leaves.get("h0"), output_final_state=True,
        cu_seqlens=None if p["cu"] is None else torch.tensor(p["cu"]),
    )  # fmt: skip
    loss = (o.double() * given["do"].double()).sum() + (final.double() * given["dht"].double()).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"o": o, "ht": final, **{f"d{name}": grad for name, grad in zip(leaves, grads)}}


def test_all_cases_are_there():
    assert len(CASES) == 25 and len(OURS) == 25


@cases(name=OURS, form=["chunk", "recurrent"])
def test_every_case_equals_the_truth(name, form):
    case = CASES[name]
    got, want = run(case, form), case.group("truth")
    assert set(got) == set(want)
    for key in want:
        bound = 1e-4 if key in SCALARS else OWN[case.params["dtype"]]
        assert_close(got[key], want[key], bound, name=f"{name} {key}")


@cases(name=[name for name in OURS if CASES[name].group("chunk")], form=["chunk", "recurrent"])
def test_the_official_kernels_agree_within_their_own_error(name, form):
    got = run(CASES[name], form)
    for key, want in CASES[name].group("chunk").items():
        assert_close(got[key], want, OFFICIAL, name=f"{name} {key}")

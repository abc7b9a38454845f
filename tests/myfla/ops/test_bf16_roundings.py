"""The form for matrix units, on a CPU with a GPU's numbers: errors are those of roundings, as the official ones."""

import pytest
import torch

import goldens
import truth
from bf16_cases import MAKE, PACKED, call, errors, halves, loop, on_any_device
from myfla.layers import RWKV7Attention
from myfla.ops._delta.bf16 import chunks
from myfla.ops._delta.bf16.chunks import bf16_chunks
from myfla.ops._delta.bf16.dplr import DPLR
from myfla.ops._delta.bf16.gated_delta import GATED_DELTA
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule
from myfla.testing import assert_close, cases

BOUND = -0.607
NUMBERS = [0.001, 0.1, 5.0, 50.0]
DECAYS = [("dplr", d) for d in ("layer", "gate", "to_40", "all_inf", "spikes", "reset")]
DECAYS += [(family, d) for family in ("gated", "kda") for d in NUMBERS]


@pytest.mark.skipif(not hasattr(torch.ops.aten.bmm, "dtype_out"), reason="this form runs with PyTorch 2.8 or newer")
@cases(case=DECAYS, l2norm=[True, False])
def test_roundings_stay_roundings(case, l2norm):
    family, decay = case
    if family == "dplr" and l2norm:
        pytest.skip("has no lengths of its own")
    found = errors(family, halves(MAKE[family](2, 256, 2, 2, 64, 64, decay=decay)), l2norm=l2norm)
    # A state that lasts the whole sequence collects every rounding on the way.
    assert max(found.values()) < (8e-3 if decay == 0.001 else 5.5e-3)


@pytest.mark.skipif(not hasattr(torch.ops.aten.bmm, "dtype_out"), reason="this form runs with PyTorch 2.8 or newer")
@cases(family=list(MAKE))
def test_packed_roundings_stay_roundings(family):
    cu = [0, 100, 101, 356, 420]
    assert max(errors(family, halves(MAKE[family](1, 1, 2, 2, 64, 64, cu=cu)), cu=cu).values()) < 5.5e-3


def compared(ours, official, exact):
    """By name, where ours errs more than the official kernel; a twentieth either way is chance: its errors are single
    draws over a few hundred numbers."""
    sides = [{name: float((x[name].detach().double() - t.detach()).norm() / t.norm()) for name, t in exact.items()}
             for x in (ours, official)]  # fmt: skip
    return {name: (error, sides[1][name]) for name, error in sides[0].items() if error > 1.05 * sides[1][name]}


@cases(case=["bf16", "bf16_gate"])
def test_gated_errors_are_no_larger_than_the_official_kernels(case):
    case = goldens.load("ops_gated_delta_rule")[case]
    p, given = case.params, case.group("inputs")
    do, dstate = given.pop("do"), given.pop("dht")
    x = {key: t.clone().requires_grad_() for key, t in given.items()}
    act = Activation(p["gate"], x.get("A_log"), x.get("dt_bias"), p["sigm"], p["neg"])
    tensors = (x["q"], x["k"], x["v"], *act.gates(x["g"], x["beta"]))
    o, state = bf16_chunks(GATED_DELTA, tensors, x["h0"], p["scale"], l2norm=p["l2n"])
    grads = torch.autograd.grad((o, state), list(x.values()), (do.to(o.dtype), dstate))
    exact = {key: t.double().requires_grad_() for key, t in given.items()}
    named = {"initial_state" if key == "h0" else key: t for key, t in exact.items()}
    flags = dict(l2norm=p["l2n"], sigmoid=p["sigm"], neg_eigval=p["neg"], scale=p["scale"])
    results = truth.gated_delta_rule(**named, **flags)
    wants = results + torch.autograd.grad(results, list(exact.values()), (do.double(), dstate.double()))
    names = ("o", "ht", *(f"d{key}" for key in x))
    assert compared(dict(zip(names, (o, state, *grads))), case.group("chunk"), dict(zip(names, wants))) == {}


@cases(bound=[None, BOUND])
def test_dplr_errors_are_no_larger_than_the_official_kernels(bound):
    case = goldens.load("ops_rwkv7")["bf16"]
    given = case.group("inputs")
    do, dstate = given.pop("do"), given.pop("dht")
    found = []
    for kind in (None, torch.float64):
        x = {name: t.to(kind or t.dtype).clone().requires_grad_() for name, t in given.items()}
        tensors = (x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"])
        results = bf16_chunks(DPLR, tensors, x["h0"], 1.0, lower_bound=None if kind else bound)
        grads = torch.autograd.grad(results, list(x.values()), (do.to(results[0].dtype), dstate.to(results[1].dtype)))
        found.append(dict(zip(["o", "ht"] + [f"d{name}" for name in x], results + grads)))
    assert compared(found[0], case.group("chunk"), found[1]) == {}


def taken_by(monkeypatch):
    """The calls that this form computes, told that the CPU has matrix units."""
    taken = []

    def forward(*given):
        taken.append(given)
        return chunks_forward(*given)

    chunks_forward = chunks.forward
    on_any_device(monkeypatch)
    monkeypatch.setattr(chunks, "forward", forward)
    return taken


@cases(family=["gated", "dplr"], case=["dense", "packed", "half", "double", "naive"])
def test_the_op_takes_this_form_for_bfloat16_on_matrix_units(family, case, monkeypatch):
    taken = taken_by(monkeypatch)
    cu = PACKED if case == "packed" else None
    x = halves(MAKE[family](1, 40, 1, 1, 16, 16, cu=cu))
    if case == "half":
        x = {name: t.half() for name, t in x.items()}
    if case == "double":
        x["initial_state"] = x["initial_state"].double()
    more = dict(initial_state=x["initial_state"], output_final_state=True, scale=0.3,
                cu_seqlens=None if cu is None else torch.tensor(cu), backend="naive" if case == "naive" else "torch")
    if family == "gated":
        got = chunk_gated_delta_rule(x["q"], x["k"], x["v"], x["g"], x["beta"], **more)
    else:
        got = chunk_dplr_delta_rule(x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"], **more)
    assert len(taken) == (case in ("dense", "packed"))
    for mine, exact in zip(got, loop(family, {name: t.double() for name, t in x.items()}, 0.3, cu)):
        assert_close(mine, exact, 5e-3)


def test_the_layer_promises_its_strongest_decay(monkeypatch):
    taken = taken_by(monkeypatch)
    layer = RWKV7Attention(hidden_size=32, head_dim=16, layer_idx=0, backend="torch").bfloat16()
    with torch.no_grad():
        layer(torch.randn(1, 70, 32).bfloat16())
    (_, _, _, _, how), = taken
    assert abs(how.lower_bound + torch.tensor(-0.5).exp().item()) < 1e-6


@cases(family=list(MAKE))
def test_a_packed_row_feels_nothing_of_its_neighbours(family):
    x = halves(MAKE[family](1, 1, 2, 2, 16, 16, cu=PACKED))
    x["v"][:, 70:134] = float("nan")
    o, final = call(family, x, 0.3, PACKED)
    nan = torch.isnan(o[0]).flatten(1).any(1)
    assert nan[70:134].all() and not nan[:70].any() and not nan[134:].any()
    assert torch.isnan(final).flatten(1).any(1).tolist() == [False, False, False, True, False]


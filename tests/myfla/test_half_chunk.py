"""The chunk form for matrix units, on a CPU: its algebra in float64, its roundings in bfloat16."""

import numpy as np
import pytest
import torch

import goldens
import truth
from half_errors import NAMES, draw, errors
from myfla.ops.common import half_choice
from myfla.ops.common.half_inverse import invert_unit_lower
from myfla.ops.common.half_products import accumulate, product, put
from myfla.ops.common.half_tokens import Cut, choose_groups, cut_dense, same_words
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.gated_delta_rule.half_chunk import half_chunks
from myfla.ops.gated_delta_rule.half_factors import pair_decay
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.testing import assert_close, cases


def golden_errors(name):
    """Errors of ours and of the official chunk kernel against the recorded truth, by name."""
    case = goldens.load("ops_gated_delta_rule")[name]
    p, given = case.params, case.group("inputs")
    do, dstate = given.pop("do"), given.pop("dht")
    x = {key: t.clone().requires_grad_() for key, t in given.items()}
    act = Activation(p["l2n"], p["gate"], x.get("A_log"), x.get("dt_bias"), p["sigm"], p["neg"])
    o, state = half_chunks(x["q"], x["k"], x["v"], *act.gates(x["g"], x["beta"]), x["h0"], p["scale"], p["l2n"])
    grads = torch.autograd.grad((o, state), list(x.values()), (do.to(o.dtype), dstate))
    ours = dict(o=o, ht=state, **{f"d{key}": grad for key, grad in zip(x, grads)})
    loop = {key: t.double().requires_grad_() for key, t in given.items()}
    named = {"initial_state" if key == "h0" else key: t for key, t in loop.items()}
    flags = dict(l2norm=p["l2n"], sigmoid=p["sigm"], neg_eigval=p["neg"], scale=p["scale"])
    results = truth.gated_delta_rule(**named, **flags)
    wants = results + torch.autograd.grad(results, list(loop.values()), (do.double(), dstate.double()))
    official, errors = case.group("chunk"), ({}, {})
    for key, want in zip(ours, wants):
        for found, side in zip((ours, official), errors):
            side[key] = float((found[key].detach().double() - want.detach()).norm() / want.norm())
    return errors


@cases(
    shape=[(1, 1, 1, 1, 4, 4), (2, 33, 2, 4, 8, 12), (1, 100, 1, 1, 8, 4)], chunk=[16, 32, 64],
    decay=[0.0, 0.1, 3.0, 100.0], linear=[True, False],
)  # fmt: skip
def test_forward_and_backward_equal_the_token_loop(shape, chunk, decay, linear):
    B, T, H, HV, K, V = shape
    cut = Cut(B, T, HV, chunk, -(-T // chunk), 1)
    for unit in (True, False):
        assert max(errors(draw(*shape, decay, beta=2.0), unit, cut, linear=linear).values()) < 1e-11


@cases(groups=[2, 4], tokens=[128, 115, 300], decay=[0.01, 5.0], linear=[True, False])
def test_groups_side_by_side_equal_one_scan(groups, tokens, decay, linear):
    count = -(-tokens // 16)
    cut = Cut(2, tokens, 2, 16, -(-count // groups) * groups, groups)
    assert max(errors(draw(2, tokens, 2, 2, 8, 12, decay), True, cut, linear=linear).values()) < 1e-11


@cases(shape=[(2, 100, 1, 2, 64, 12), (1, 33, 2, 2, 8, 8)])
def test_a_forward_that_keeps_nothing_is_the_same(shape):
    x = draw(*shape, 0.5)
    want = truth.gated_delta_rule(**x, scale=0.3, l2norm=True)
    for a, b in zip(half_chunks(*x.values(), 0.3, True), want):
        assert_close(a, b, 1e-12)


def test_endless_decays_and_writes_of_zero_are_exact():
    x = draw(1, 70, 1, 1, 8, 8, 1.0)
    x["g"][0, [0, 5, 20, 66]] = -float("inf")
    x["beta"][0, [1, 3, 64]] = 0
    ours = {name: t.clone().requires_grad_() for name, t in x.items()}
    loop = {name: t.clone().requires_grad_() for name, t in x.items()}
    got, want = half_chunks(*ours.values(), 1.0, True), truth.gated_delta_rule(**loop, scale=1.0, l2norm=True)
    for a, b in zip(got, want):
        assert_close(a, b, 1e-11)
    grads = [torch.autograd.grad(o.square().sum() + s.square().sum(), list(t.values()))
             for (o, s), t in ((got, ours), (want, loop))]  # fmt: skip
    for name, a, b in zip(NAMES, *grads):
        assert_close(a, torch.nan_to_num(b), 1e-11, name=name)


@pytest.mark.skipif(not hasattr(torch.ops.aten.bmm, "dtype_out"), reason="this form runs with PyTorch 2.8 or newer")
@cases(decay=[0.001, 0.1, 5.0, 50.0], unit=[True, False])
def test_roundings_stay_roundings(decay, unit):
    found = errors(draw(2, 256, 2, 2, 64, 64, decay, torch.bfloat16), unit, linear=False)
    # A state that lasts the whole sequence collects every rounding on the way.
    assert max(found.values()) < (8e-3 if decay < 0.01 else 5.5e-3)


@cases(decay=[0.001, 0.1, 5.0, 50.0], unit=[True, False])
def test_the_scan_with_the_fewest_operations_rounds_no_more(decay, unit):
    """On average over draws: of one the gradient of a weak decay, whose terms cancel, is largely chance."""
    draws, found = [draw(2, 256, 2, 2, 64, 64, decay, torch.bfloat16) for _ in range(4)], {}
    for linear in (True, False):
        torch.manual_seed(1)  # the same gradients for both
        seen = [errors(x, unit, linear=linear) for x in draws]
        found[linear] = {name: sum(one[name] for one in seen) / len(seen) for name in seen[0]}
    for name, error in found[True].items():
        assert error < 1.05 * found[False][name], name


@cases(case=["bf16", "bf16_gate"])
def test_errors_are_no_larger_than_the_official_kernels(case):
    ours, official = golden_errors(case)
    # The official errors are single draws over a few hundred numbers: a twentieth either way is chance.
    assert {name: (ours[name], official[name]) for name in ours if ours[name] > 1.05 * official[name]} == {}


def test_decays_of_pairs_are_differences_for_every_gate():
    g = -torch.tensor([0.0, 1e-3, 0.5, 40.0, 900.0]).double()[torch.randint(5, (3, 64))]
    c = g.cumsum(1)
    want = (c.unsqueeze(2) - c.unsqueeze(1)).tril().exp().tril()
    assert_close(pair_decay(c.unsqueeze(-1), torch.float64), want, 1e-13)
    assert torch.isfinite(pair_decay(c.unsqueeze(-1), torch.float32)).all()


def exact_inverse(lower):
    """``(I + lower)^-1`` by substitution in numpy's longest numbers: LU in float64 errs by more than what it judges."""
    below, out = lower.numpy().astype(np.longdouble), np.zeros(lower.shape, np.longdouble)
    for i, row in enumerate(np.eye(lower.shape[-1])):
        out[:, i] = row - np.einsum("bj,bjk->bk", below[:, i, :i], out[:, :i])
    return torch.from_numpy(out.astype(np.float64))


@cases(size=[16, 32, 64], dtype=[torch.float32, torch.float64])
def test_the_inverse_holds_where_keys_are_alike(size, dtype):
    keys = torch.nn.functional.normalize(torch.randn(5, 1, 8) + 0.1 * torch.randn(5, size, 8), dim=-1).to(dtype)
    lower = 2 * keys @ keys.transpose(1, 2)
    want = exact_inverse(lower.double().tril(-1))
    assert_close(invert_unit_lower(lower), want, 1e-5 if dtype == torch.float32 else 3e-14)


def test_products_add_up_in_float32_and_round_once():
    a, b = torch.randn(2, 8, 300).bfloat16(), torch.randn(2, 300, 8).bfloat16()
    exact = a.double() @ b.double()
    assert_close(product(a, b, torch.float32, alpha=0.5), exact / 2, 1e-6)
    assert torch.equal(product(a, b), product(a, b, torch.float32).bfloat16())
    assert_close(accumulate(torch.ones(2, 8, 8), a, b, alpha=-1), 1 - exact, 1e-6)
    out = torch.zeros(2, 8, 16)[:, :, ::2].transpose(1, 2)
    assert product(a, b, out=out) is out
    assert_close(out, exact, 1e-6)
    factor = torch.tensor(1.2345)
    assert torch.equal(put(torch.empty_like(a), a, factor), (a.float() * factor).bfloat16())


def test_words_carry_the_same_numbers():
    x = torch.randn(2, 5, 3, 8).bfloat16()
    y = torch.empty_like(x)
    words = same_words(x, y)
    assert words[0].dtype == torch.int64
    words[1].copy_(words[0])
    assert torch.equal(x, y)
    assert same_words(x[..., 1:5], y[..., :4])[0].dtype == torch.bfloat16
    assert same_words(x[..., :6], y[..., :6])[0].dtype == torch.bfloat16


def test_long_sequences_of_few_heads_are_scanned_in_groups():
    assert [choose_groups(*x) for x in ((128, 32), (16, 64), (16, 256), (1, 3))] == [1, 4, 8, 1]
    cut = cut_dense(torch.empty(1, 4097, 16, 128), None)
    assert cut.count % cut.groups == 0 and cut.count * cut.chunk >= 4097 and cut.rows == 16 * cut.groups


@cases(case=["dense", "packed", "half", "double", "naive"])
def test_the_op_takes_this_form_for_dense_bfloat16_batches_on_matrix_units(case, monkeypatch):
    monkeypatch.setattr(half_choice, "has_matrix_units", lambda device: True)
    x = draw(1, 40, 1, 1, 16, 16, 0.1, torch.float16 if case == "half" else torch.bfloat16)
    if case == "double":
        x["initial_state"] = x["initial_state"].double()
    cu = torch.tensor([0, 40]) if case == "packed" else None
    taken = []
    monkeypatch.setattr("myfla.ops.gated_delta_rule.chunk.half_chunks",
                        lambda *a, **k: taken.append(1) or half_chunks(*a, **k))  # fmt: skip
    o, state = chunk_gated_delta_rule(**x, cu_seqlens=cu, output_final_state=True, use_qk_l2norm_in_kernel=True,
                                      backend="naive" if case == "naive" else "torch")  # fmt: skip
    want, last = truth.gated_delta_rule(**x, l2norm=True)
    assert len(taken) == (case == "dense")
    assert_close(o, want, 5e-3)
    assert_close(state, last, 5e-3)


def test_second_derivatives_go_through_the_token_loop():
    x = [t.requires_grad_() for t in draw(1, 5, 1, 1, 3, 2, 0.5).values()]
    assert torch.autograd.gradgradcheck(lambda *t: half_chunks(*t, 1.0, True), x)

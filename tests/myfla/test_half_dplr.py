"""RWKV-7's chunk form for matrix units, on a CPU: its algebra in float64, its roundings in bfloat16."""

import functools

import pytest
import torch

import dplr_cases
import goldens
from myfla.layers import RWKV7Attention
from myfla.ops.common import half_choice
from myfla.ops.common.half_tokens import Cut
from myfla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule, half_fwd
from myfla.ops.generalized_delta_rule.dplr.half_chunk import half_chunks
from myfla.ops.generalized_delta_rule.dplr.half_levels import RANGE, choose_levels
from myfla.testing import assert_close, cases

BOUND = -0.607


def errors(given, scale=1.0, **options):
    """Relative error of outputs and gradients against the float64 token loop, by name."""
    inputs = dplr_cases.leaves(given)
    x = inputs
    outputs = half_chunks(
        x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"], x["initial_state"], scale, **options
    )
    found, want = dplr_cases.everything(outputs, inputs), dplr_cases.loop(given, scale)
    want = {name: torch.nan_to_num(t) for name, t in want.items()}  # the loop's own gradient of an endless decay
    return {name: float((found[name].double() - t).norm() / t.norm().clamp(min=1e-3)) for name, t in want.items()}


def half_precision(given):
    return {name: t.float() if name == "initial_state" else t.bfloat16() for name, t in given.items()}


@cases(decay=list(dplr_cases.DECAYS), shape=[(2, 37, 16, 16, 16), (1, 130, 8, 12, 64), (1, 70, 8, 12, 32)])
def test_forward_and_backward_equal_the_token_loop(decay, shape):
    B, T, K, V, chunk = shape
    # Decays too strong for a gradient of their own leave the rounding errors of what cancels, far below the others.
    assert max(errors(dplr_cases.make(B, T, 2, K, V, decay), 0.7, chunk=chunk).values()) < 1e-9


@cases(tokens=[1, 16, 100], bound=[BOUND, -5.0, -1000.0])
def test_a_bound_on_the_decays_changes_rounding_only(tokens, bound):
    given = dplr_cases.make(2, tokens, 2, 8, 12, "layer")
    assert max(errors(given, lower_bound=bound).values()) < 1e-12


@cases(groups=[2, 4], tokens=[115, 300])
def test_groups_side_by_side_equal_one_scan(groups, tokens):
    count = -(-tokens // 16)
    cut = Cut(2, tokens, 2, 16, -(-count // groups) * groups, groups)
    assert max(errors(dplr_cases.make(2, tokens, 2, 8, 12, "spikes"), cut=cut).values()) < 1e-12


@cases(decay=["layer", "gate", "to_40", "all_inf", "spikes", "reset"])
def test_roundings_stay_roundings(decay):
    assert max(errors(half_precision(dplr_cases.make(2, 256, 2, 64, 64, decay))).values()) < 5.5e-3


@cases(bound=[None, BOUND])
def test_errors_are_no_larger_than_the_official_kernels(bound):
    case = goldens.load("ops_rwkv7")["bf16"]
    given, official = case.group("inputs"), case.group("chunk")
    do, dstate = given.pop("do"), given.pop("dht")
    found = {}
    for kind in (None, torch.float64):
        x = {name: t.to(kind or t.dtype).clone().requires_grad_() for name, t in given.items()}
        tokens = (x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"], x["h0"], 1.0)
        how = {} if kind else dict(lower_bound=bound)
        results = half_chunks(*tokens, **how)
        grads = torch.autograd.grad(results, list(x.values()), (do.to(results[0].dtype), dstate.to(results[1].dtype)))
        found[kind] = dict(zip(["o", "ht"] + [f"d{name}" for name in x], results + grads))
    exact = {name: t.detach() for name, t in found[torch.float64].items()}
    sides = [{name: float((side[name].detach().double() - t).norm() / t.norm()) for name, t in exact.items()}
             for side in (found[None], official)]  # fmt: skip
    # The official errors are single draws: a twentieth either way is chance.
    assert {name: (error, sides[1][name]) for name, error in sides[0].items() if error > 1.05 * sides[1][name]} == {}


@cases(chunk=[16, 32, 64], bound=[None, BOUND, -5.0, -1000.0], dtype=[torch.float32, torch.float64])
def test_every_pair_of_tokens_meets_once_within_range(chunk, bound, dtype):
    levels = choose_levels(chunk, dtype, bound)
    grid = torch.zeros(1, 2, chunk, 2, chunk)
    for meeting in levels.meetings():
        meeting.squares(grid).add_(1)
        assert meeting.squares(grid).shape[1] == meeting.places(chunk)
    assert torch.equal(grid[0, 0, :, 0].tril(), torch.ones(chunk, chunk).tril())
    c = torch.full((1, chunk, 1), levels.floor, dtype=dtype).cumsum(1)
    rises = torch.stack((torch.nn.functional.pad(c[:, :-1], (0, 0, 1, 0)), c), dim=1)
    for i, meeting in enumerate(levels.meetings()):
        to, since = meeting.decays(c, rises)
        most = RANGE[dtype] if i == 0 else 0
        assert max(to.max().item(), since.max().item()) <= torch.tensor(most, dtype=dtype).exp() * (1 + 1e-5)
        assert i or min(to.min().item(), since.min().item()) >= torch.tensor(-most, dtype=dtype).exp() * (1 - 1e-5)


def test_blocks_grow_to_what_a_bound_allows():
    blocks = {bound: choose_levels(64, torch.float32, bound).block for bound in (None, BOUND, -2.0, -5.0, -20.0)}
    assert blocks == {None: 8, BOUND: 64, -2.0: 64, -5.0: 16, -20.0: 8}
    for bound in (BOUND, -2.0, -5.0):
        assert choose_levels(64, torch.float32, bound).floor <= bound


@cases(case=["dense", "packed", "half", "double", "naive"])
def test_the_op_takes_this_form_for_dense_bfloat16_batches_on_matrix_units(case, monkeypatch):
    monkeypatch.setattr(half_choice, "has_matrix_units", lambda device: True)
    given = half_precision(dplr_cases.make(1, 40, 1, decay="spikes"))
    if case == "half":
        given = {name: t.half() for name, t in given.items()}
    if case == "double":
        given["initial_state"] = given["initial_state"].double()
    taken = []
    monkeypatch.setattr("myfla.ops.generalized_delta_rule.dplr.chunk.half_chunks",
                        lambda *a, **k: taken.append(1) or half_chunks(*a, **k))  # fmt: skip
    cu, backend = [0, 40] if case == "packed" else None, "naive" if case == "naive" else "torch"
    o, state = dplr_cases.run(chunk_dplr_delta_rule, given, cu=cu, backend=backend)
    want = dplr_cases.loop(given)
    assert len(taken) == (case == "dense")
    assert_close(o, want["o"], 5e-3)
    assert_close(state, want["ht"], 5e-3)


def test_the_layer_promises_its_strongest_decay(monkeypatch):
    monkeypatch.setattr(half_choice, "has_matrix_units", lambda device: True)
    bounds = []

    def spy(*a, **k):
        bounds.append(a[9])
        return half_chunks(*a, **k)

    monkeypatch.setattr("myfla.ops.generalized_delta_rule.dplr.chunk.half_chunks", spy)
    layer = RWKV7Attention(hidden_size=32, head_dim=16, layer_idx=0).bfloat16()
    layer(torch.randn(1, 70, 32).bfloat16())
    assert len(bounds) == 1 and abs(bounds[0] + torch.tensor(-0.5).exp().item()) < 1e-6


def test_second_derivatives_go_through_plain_operations():
    given = dplr_cases.make(1, 5, 1, 3, 2)
    x = [given[name].requires_grad_() for name in ("r", "k", "v", "kk", "a", "w", "initial_state")]
    assert torch.autograd.gradgradcheck(lambda *t: half_chunks(*t, 1.0), x)


@pytest.mark.skipif(not hasattr(getattr(torch, "compiler", None), "is_compiling"), reason="compiles with PyTorch 2.3")
def test_passes_as_a_compiler_sees_them_are_the_same(monkeypatch):
    """The branches that only a compiler takes, without code generation."""
    torch._dynamo.reset()
    seen = set()

    @functools.lru_cache(maxsize=None)
    def compiled(function):
        seen.add(function.__name__)
        return torch.compile(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(half_fwd, "compiled", compiled)
    for bound in (None, BOUND):
        given = dplr_cases.make(1, 130, 1, 8, 4)
        assert max(errors(given, 0.5, fuse=True, chunk=64, lower_bound=bound).values()) < 1e-12
    assert len(seen) == 9

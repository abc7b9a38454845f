"""The form that compilers and exporters see is the function that everyone else gets."""

import pytest
import torch
import torch.nn.functional as F

from myfla.ops._delta.call import Call
from myfla.ops._delta.chunk.triangular import substitute
from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.families.kda import KDA
from myfla.ops._delta.traced.chunks import traced_chunks
from myfla.ops._delta.traced.step import dplr_step
from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
from myfla.ops.kda import fused_recurrent_kda
from myfla.ops.rwkv7 import fused_recurrent_rwkv7
from myfla.testing import assert_close, cases
from myfla.utils.rows import from_rows, to_rows

D = torch.float64
OFFSETS = [0, 0, 20, 21, 60, 60]


def gated_inputs(batch, tokens):
    q, k = (F.normalize(torch.randn(batch, tokens, 2, 4, dtype=D), dim=-1) for _ in range(2))
    v, g = torch.randn(batch, tokens, 4, 3, dtype=D), -3 * torch.rand(batch, tokens, 4, dtype=D)
    g[:, tokens // 2] = -float("inf")
    return q, k, v, g, torch.rand(batch, tokens, 4, dtype=D)


def dplr_inputs(batch, tokens):
    r, k, kk = (F.normalize(torch.randn(batch, tokens, 2, 4, dtype=D), dim=-1) for _ in range(3))
    w = -8 * torch.rand(batch, tokens, 2, 4, dtype=D)
    w[:, tokens // 2] = -float("inf")
    return r, w, k, torch.randn(batch, tokens, 2, 3, dtype=D), -kk, kk * torch.rand(batch, tokens, 2, 4, dtype=D)


@cases(tokens=[1, 31, 32, 70], packed=[False, True])
def test_plain_gated_delta_rule_is_the_token_loop(tokens, packed):
    tokens, cu = (60, torch.tensor(OFFSETS)) if packed else (tokens, None)
    q, k, v, g, beta = gated_inputs(1 if packed else 2, tokens)
    state = torch.randn(5 if packed else 2, 4, 4, 3, dtype=D)
    want = fused_recurrent_gated_delta_rule(
        q, k, v, g, beta=beta, initial_state=state, output_final_state=True, cu_seqlens=cu)
    got = traced_chunks(GATED_DELTA, (q, k, v, g, beta), state, 0.5, False, cu, D, D)
    for mine, theirs in zip(got, want):
        assert_close(mine, theirs, rms=1e-12)


@cases(tokens=[1, 15, 16, 70], packed=[False, True])
def test_plain_dplr_rule_is_the_token_loop(tokens, packed):
    tokens, cu = (60, torch.tensor(OFFSETS)) if packed else (tokens, None)
    r, w, k, v, a, b = dplr_inputs(1 if packed else 2, tokens)
    state = torch.randn(5 if packed else 2, 2, 4, 3, dtype=D)
    want = fused_recurrent_rwkv7(r, w, k, v, a, b, 1.0, state, cu_seqlens=cu)
    x = (r, k, v, a, b, w)
    got = [traced_chunks(DPLR, x, state, 1.0, False, cu, D, D)]
    if tokens == 1:
        got.append(dplr_step(Call("step", DPLR, "recurrent", x, state, 1.0, None, 2, D)))
    for o, final in got:
        assert_close(o, want[0], rms=1e-12)
        assert_close(final, want[1], rms=1e-12)


@cases(tokens=[1, 15, 16, 70], packed=[False, True])
def test_plain_kda_is_the_token_loop(tokens, packed):
    tokens, cu = (60, torch.tensor(OFFSETS)) if packed else (tokens, None)
    q, k, v, g, beta = gated_inputs(1 if packed else 2, tokens)
    g = g.unsqueeze(-1) * torch.rand(4, dtype=D)
    state = torch.randn(5 if packed else 2, 4, 4, 3, dtype=D)
    want = fused_recurrent_kda(q, k, v, g, beta, initial_state=state, output_final_state=True, cu_seqlens=cu)
    got = traced_chunks(KDA, (q, k, v, g, beta), state, 0.5, False, cu, D, D)
    for mine, theirs in zip(got, want):
        assert_close(mine, theirs, rms=1e-12)


def test_rows_come_back_packed():
    x, cu = torch.randn(1, 60, 3), torch.tensor(OFFSETS)
    rows = to_rows(x, cu)
    assert rows.shape == (5, 60, 3) and not rows[0].any() and torch.equal(rows[1, :20], x[0, :20])
    assert torch.equal(from_rows(rows, cu), x)


@cases(size=[1, 5, 16, 17, 64])
def test_substitution_is_the_inverse(size):
    lower = torch.randn(3, size, size, dtype=D).tril(-1) / 4
    got = substitute(lower) @ (lower + torch.eye(size, dtype=D))
    assert_close(got, torch.eye(size, dtype=D).expand(3, size, size), rms=1e-11)


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with PyTorch 2.0")
def test_the_rule_holds_inside_transforms_only():
    from myfla.utils.tracing import tracing

    seen = []
    torch.func.vmap(lambda x: seen.append(tracing()) or x)(torch.zeros(2))
    assert seen == [True] and not tracing()

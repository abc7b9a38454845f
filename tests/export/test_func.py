"""torch.func over every form of the rules: vmap is a loop, grad is autograd's, jvp is the gradient's product."""

import pytest
import torch
import torch.nn.functional as F

from myfla.ops.gated_delta_rule import (
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule,
    naive_chunk_gated_delta_rule,
    naive_recurrent_gated_delta_rule,
)
from myfla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7
from myfla.testing import assert_close, cases

pytestmark = pytest.mark.skipif(not hasattr(torch, "func"), reason="torch.func came with PyTorch 2.0")

FORMS = {
    "naive": lambda q, k, v, g, b: naive_recurrent_gated_delta_rule(q, k, v, b, g)[0],
    "naive_chunk": lambda q, k, v, g, b: naive_chunk_gated_delta_rule(q, k, v, g, b, chunk_size=16)[0],
    "chunk": lambda q, k, v, g, b: chunk_gated_delta_rule(q, k, v, g, b, use_qk_l2norm_in_kernel=True)[0],
    "recurrent": lambda q, k, v, g, b: fused_recurrent_gated_delta_rule(q, k, v, g, beta=b)[0],
    "rwkv7_chunk": lambda q, k, v, g, b: chunk_rwkv7(q, -q.exp(), k, v, -k, k * 0.5)[0],
    "rwkv7_recurrent": lambda q, k, v, g, b: fused_recurrent_rwkv7(q, -q.exp(), k, v, -k, k * 0.5)[0],
}


def inputs(tokens=37):
    q, k = (F.normalize(torch.randn(3, tokens, 2, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    v = torch.randn(3, tokens, 2, 3, dtype=torch.float64)
    g, beta = -torch.rand(3, tokens, 2, dtype=torch.float64), torch.rand(3, tokens, 2, dtype=torch.float64)
    return q, k, v, g, beta


@cases(form=list(FORMS), tokens=[1, 37])
def test_vmap_is_a_loop(form, tokens):
    function, given = FORMS[form], inputs(tokens)
    got = torch.func.vmap(lambda *one: function(*(x[None] for x in one))[0])(*given)
    assert_close(got, function(*given), rms=1e-13)


@cases(form=list(FORMS))
def test_vmap_over_one_argument_is_a_loop(form):
    function, (q, k, v, g, beta) = FORMS[form], inputs()
    got = torch.func.vmap(lambda one: function(q, k, one, g, beta))(torch.stack([v, 2 * v]))
    assert_close(got, torch.stack([function(q, k, v, g, beta), function(q, k, 2 * v, g, beta)]), rms=1e-13)


@cases(form=list(FORMS))
def test_grad_is_autograds(form):
    function, given = FORMS[form], inputs()
    weight = torch.randn(3, 37, 2, 3, dtype=torch.float64)
    got = torch.func.grad(lambda *t: (function(*t) * weight).sum(), argnums=(0, 1, 2))(*given)
    leaves = [x.clone().requires_grad_() for x in given]
    (function(*leaves) * weight).sum().backward()
    for mine, leaf in zip(got, leaves):
        assert_close(mine, leaf.grad, rms=1e-12)


@cases(form=list(FORMS))
def test_jvp_is_the_product_with_the_gradient(form):
    function, (q, *rest) = FORMS[form], inputs()
    weight, tangent = torch.randn(3, 37, 2, 3, dtype=torch.float64), torch.randn_like(q)

    def loss(q):
        return (function(q, *rest) * weight).sum()

    _, got = torch.func.jvp(loss, (q,), (tangent,))
    assert_close(got, (torch.func.grad(loss)(q) * tangent).sum(), rms=1e-12)

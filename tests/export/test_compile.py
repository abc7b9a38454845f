"""torch.compile without a graph break, forward and backward, in one graph for all lengths above one."""

import pytest
import torch
import torch.nn.functional as F

from export_subjects import STRATEGIES, small_encoder
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7
from myfla.testing import assert_close, cases

pytest.importorskip("torch._higher_order_ops.scan")
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="autograd through scan came with PyTorch 2.9")

OPS = {
    "chunk_gated_delta_rule": lambda q, k, v, g, b, s: chunk_gated_delta_rule(
        q, k, v, g, b, initial_state=s, output_final_state=True, use_qk_l2norm_in_kernel=True),
    "fused_recurrent_gated_delta_rule": lambda q, k, v, g, b, s: fused_recurrent_gated_delta_rule(
        q, k, v, g, beta=b, initial_state=s, output_final_state=True),
    "chunk_rwkv7": lambda q, k, v, g, b, s: chunk_rwkv7(
        q, -F.softplus(q), k, v, -k, k * q.sigmoid(), initial_state=s, output_final_state=True),
    "fused_mul_recurrent_rwkv7": lambda q, k, v, g, b, s: fused_mul_recurrent_rwkv7(
        q, -F.softplus(q), k, v, k, q.sigmoid(), initial_state=s, output_final_state=True),
}


class Counter:
    """A backend that counts the graphs it is given; with gradients by AOT autograd, without code generation."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, examples):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(module, examples)


def inputs(tokens):
    q, k = (F.normalize(torch.randn(2, tokens, 2, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    v, g = torch.randn(2, tokens, 2, 3, dtype=torch.float64), -torch.rand(2, tokens, 2, dtype=torch.float64)
    beta, state = torch.rand(2, tokens, 2, dtype=torch.float64), torch.randn(2, 2, 4, 3, dtype=torch.float64)
    return [x.requires_grad_() for x in (q, k, v, g, beta, state)]


def loss_and_grads(function, leaves):
    outputs = function(*leaves)
    sum(x.square().sum() for x in outputs).backward()
    return [*outputs, *(x.grad for x in leaves if x.grad is not None)]


@cases(name=["chunk_gated_delta_rule", "chunk_rwkv7"])
def test_one_graph_serves_all_lengths_but_the_first(name):
    check_lengths(name, (40, 50, 5, 32), graphs=2)


@pytest.mark.slow
@cases(name=list(OPS))
def test_ops_compile_to_three_graphs_at_most(name):
    check_lengths(name, (40, 50, 5, 70, 1, 32), graphs=3)


def check_lengths(name, lengths, graphs):
    torch._dynamo.reset()
    backend = Counter()
    compiled = torch.compile(OPS[name], fullgraph=True, backend=backend)
    for tokens in lengths:
        given = inputs(tokens)
        want = loss_and_grads(OPS[name], given)
        got = loss_and_grads(compiled, [x.detach().requires_grad_() for x in given])
        assert len(got) == len(want)
        for mine, theirs in zip(got, want):
            assert_close(mine, theirs, rms=1e-12)
    assert backend.graphs <= graphs


@pytest.mark.slow
@cases(name=STRATEGIES)
def test_encoders_compile_to_three_graphs_at_most(name):
    torch._dynamo.reset()
    encoder, backend = small_encoder(name, torch.float64).train(), Counter()
    compiled = torch.compile(encoder, fullgraph=True, backend=backend)
    for tokens in (40, 50, 5, 1):
        x, results = torch.randn(2, tokens, 3, dtype=torch.float64), []
        for module in (encoder, compiled):
            encoder.zero_grad()
            out = module(x)
            (out.hidden.square().sum() + out.embedding.sum()).backward()
            results.append([out.hidden, out.embedding, *(p.grad for p in encoder.parameters() if p.grad is not None)])
        assert len(results[0]) == len(results[1])
        for theirs, mine in zip(*results):
            assert_close(mine, theirs, rms=1e-10)
    assert backend.graphs <= 3


@cases(name=["fused_recurrent_gated_delta_rule", "fused_mul_recurrent_rwkv7"])
def test_a_decode_loop_compiles_once(name):
    torch._dynamo.reset()
    backend = Counter()
    compiled = torch.compile(OPS[name], fullgraph=True, backend=backend)
    state = want_state = torch.zeros(2, 2, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(5):
            q, k, v, g, beta, _ = (x.detach() for x in inputs(1))
            o, state = compiled(q, k, v, g, beta, state)
            want, want_state = OPS[name](q, k, v, g, beta, want_state)
            assert_close(o, want, rms=1e-12)
            assert_close(state, want_state, rms=1e-12)
    assert backend.graphs == 1

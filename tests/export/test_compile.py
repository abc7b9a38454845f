"""torch.compile without a graph break, forward and backward, in one graph for all lengths above one."""

import pytest
import torch
import torch.nn.functional as F

from export_subjects import STRATEGIES, small_encoder
from myfla.backends.compiler import compiler_problem
from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.models.utils import Cache
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7
from myfla.testing import assert_close, cases
from myfla.utils import tracing
from myfla.utils.graph_op import takes_graph_ops
from small_models import KINDS, prompt, small_model

pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch, "library", None), "custom_op"), reason="the graph's own ops came with PyTorch 2.4")

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


def projection(outputs):
    """A loss whose gradient does not vanish behind a norm, as that of a sum of squares does."""
    seed = torch.Generator().manual_seed(7)
    return sum((x * torch.randn(x.shape, generator=seed, dtype=x.dtype)).sum() for x in outputs)


def loss_and_grads(function, leaves):
    outputs = function(*leaves)
    sum(x.square().sum() for x in outputs).backward()
    return [*outputs, *(x.grad for x in leaves if x.grad is not None)]


def test_a_compiler_is_no_exporter():
    """PyTorch 2.11 tells whatever it compiles that it is being exported; then the plain forms would run."""
    torch._dynamo.reset()

    def watchers(x):
        return x, tracing.compiling(), tracing.exporting(), takes_graph_ops()

    assert torch.compile(watchers, fullgraph=True, backend="eager")(torch.ones(1))[1:] == (True, False, True)


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
            projection(out[:2]).backward()
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


def gradients_of(module, run, *given):
    module.zero_grad()
    out = run(*given)
    projection(out).backward()
    return [*out, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


LAYERS = {
    "gated_deltanet": lambda: GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=2, layer_idx=0, dtype=torch.float64),
    "rwkv7": lambda: RWKV7Attention(
        hidden_size=8, head_dim=4, layer_idx=0, num_hidden_layers=2, dtype=torch.float64),
    "rwkv7 feed-forward": lambda: RWKV7FeedForward(8, layer_idx=0, num_hidden_layers=2, dtype=torch.float64),
}


@cases(name=list(LAYERS))
def test_layers_with_masks_compile_to_two_graphs(name):
    torch._dynamo.reset()
    layer, backend = LAYERS[name](), Counter()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)

    def run(x, mask):
        return (layer(x, attention_mask=mask)[0],)

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for tokens in (40, 50, 7):
        x, mask = torch.randn(3, tokens, 8, dtype=torch.float64), torch.ones(3, tokens)
        mask[0, :3], mask[1, 5:], mask[2, 2:4] = 0, 0, 0
        x[mask == 0] = float("nan")
        for mine, theirs in zip(gradients_of(layer, compiled, x, mask), gradients_of(layer, run, x, mask)):
            assert_close(mine, theirs, rms=1e-11)
    assert backend.graphs <= 2


@cases(name=["gated_deltanet", "rwkv7"])
def test_a_compiled_layer_streams_with_masks(name):
    torch._dynamo.reset()
    layer, backend = LAYERS[name]().eval(), Counter()

    def run(x, mask, cache):
        return layer(x, attention_mask=mask, past_key_values=cache, use_cache=True)[0]

    compiled, mine, theirs = torch.compile(run, fullgraph=True, backend=backend), Cache(), Cache()
    with torch.no_grad():
        run(torch.randn(2, 5, 8, dtype=torch.float64), None, mine)
        theirs = mine.fork()
        for _ in range(4):
            x, mask = torch.randn(2, 3, 8, dtype=torch.float64), torch.tensor([[0, 1, 1], [1, 1, 0]])
            assert_close(compiled(x, mask, mine), run(x, mask, theirs), rms=1e-12)
    assert mine.get_lengths(0).tolist() == theirs.get_lengths(0).tolist() == [13, 13]
    assert_close(mine[0]["recurrent_state"], theirs[0]["recurrent_state"], rms=1e-12)
    assert backend.graphs <= 2  # the second, once the number of tokens seen has changed


@pytest.mark.slow
@cases(name=STRATEGIES, pooling=["mean", "last", "max", "attention"])
def test_encoders_with_lengths_compile_to_two_graphs(name, pooling):
    torch._dynamo.reset()
    encoder, backend = small_encoder(name, torch.float64, pooling=pooling).train(), Counter()

    def run(x, lengths):
        return encoder(x, lengths=lengths)[:2]

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for tokens in (40, 50, 5):
        x, lengths = torch.randn(3, tokens, 3, dtype=torch.float64), torch.tensor([tokens, 0, 3])
        x[2, 3:] = float("nan")
        for mine, theirs in zip(gradients_of(encoder, compiled, x, lengths), gradients_of(encoder, run, x, lengths)):
            assert_close(mine, theirs, rms=1e-10)
    assert backend.graphs <= 2


@pytest.mark.skipif(compiler_problem("cpu") is not None, reason="no working torch.compile")
@cases(name=["chunk_gated_delta_rule", "chunk_rwkv7"])
def test_the_default_compiler_computes_the_same_gradients(name):
    """Code generation included: what Inductor of PyTorch 2.13 made of the rule in plain operations was wrong."""
    torch._dynamo.reset()
    compiled = torch.compile(OPS[name], fullgraph=True)
    for tokens in (40, 50, 5):
        given = inputs(tokens)
        want = loss_and_grads(OPS[name], given)
        got = loss_and_grads(compiled, [x.detach().requires_grad_() for x in given])
        for mine, theirs in zip(got, want):
            assert_close(mine, theirs, rms=1e-11)


@cases(name=["chunk_gated_delta_rule"])
def test_a_compiled_vmap_is_a_loop(name):
    torch._dynamo.reset()

    def one(q, k, v, g, b):
        return chunk_gated_delta_rule(q[None], k[None], v[None], g[None], b[None])[0][0]

    given = [x.detach() for x in inputs(20)[:5]]
    got = torch.compile(torch.func.vmap(one), fullgraph=True, backend="aot_eager")(*given)
    assert_close(got, chunk_gated_delta_rule(*given)[0], rms=1e-12)


@cases(kind=KINDS)
def test_a_language_model_decodes_in_one_graph(kind):
    torch._dynamo.reset()
    model, graphs = small_model(kind), []

    def backend(module, examples):  # AOT autograd would be asked twice for one graph: it settles scalars first
        graphs.append(module)
        return module.forward

    def step(ids, cache):
        return model(ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    compiled, ids = torch.compile(step, fullgraph=True, dynamic=True, backend=backend), prompt(2, 9)
    with torch.no_grad():
        out = model(ids, use_cache=True)
        tokens = [out.logits[:, -1:].argmax(-1)]
        for _ in range(4):
            tokens.append(compiled(tokens[-1], out.past_key_values))
    want = model.generate(ids, max_new_tokens=5, eos_token_id=None)
    assert torch.equal(torch.cat([ids, *tokens], 1), want)
    assert len(graphs) == 1

"""`torch.compile` on a CPU keeps one graph, with the compiled kernels as operations in it."""

import pytest
import torch

from myfla.backends import compiler
from myfla.layers import GatedDeltaNet, KimiDeltaAttention, RWKV7Attention
from myfla.models.utils import Cache
from myfla.ops._delta import native_graph
from myfla.ops._delta.version import op_name
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.kda import chunk_kda
from myfla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7
from myfla.testing import assert_close, cases
from myfla.utils.graph_op import custom_op

pytestmark = pytest.mark.skipif(
    custom_op is None or compiler.compiler_problem("cpu") is not None, reason="no torch.compile that takes operations"
)
PACKED = torch.tensor([0, 0, 7, 8, 30])
RULE, RULE_BACKWARD = (
    op_name(name).replace("::", ".") + ".default" for name in ("native_rule", "native_rule_backward")
)


def gated(op, T=30, cu=None, **more):
    N = 2 if cu is None else 4
    B = 2 if cu is None else 1
    q, k, v, g, beta, A, s = (torch.randn(*shape) for shape in (
        (B, T, 2, 9), (B, T, 2, 9), (B, T, 4, 6), (B, T, 4), (B, T, 4), (4,), (N, 4, 9, 6)))  # fmt: skip

    def call(q, k, v, g, beta, A, s):
        return op(q, k, v, g=g, beta=beta, initial_state=s, output_final_state=True, use_qk_l2norm_in_kernel=True,
                  use_gate_in_kernel=True, A_log=A, use_beta_sigmoid_in_kernel=True, cu_seqlens=cu, **more)

    return call, (q, k, v, g, beta, A, s)


def kda(op, T=30, cu=None, **more):
    q, k, v, g, beta = (torch.randn(1, T, 2, *size) for size in ((8,), (8,), (5,), (8,), ()))

    def call(q, k, v, g, beta):
        return op(q, k, v, -g.square(), beta.sigmoid(), output_final_state=True, cu_seqlens=cu, **more)

    return call, (q, k, v, g, beta)


def rwkv7(op, T=30, cu=None, **more):
    r, w, k, a, b = (torch.randn(1, T, 2, 8) * 0.5 for _ in range(5))
    v = torch.randn(1, T, 2, 5)

    def call(r, w, k, v, a, b):
        return op(r, -w.square(), k, v, a, b, output_final_state=True, cu_seqlens=cu, **more)

    return call, (r, w, k, v, a, b)


RULES = {
    "gated": (gated, chunk_gated_delta_rule), "gated recurrent": (gated, fused_recurrent_gated_delta_rule),
    "kda": (kda, chunk_kda), "rwkv7": (rwkv7, chunk_rwkv7), "rwkv7 recurrent": (rwkv7, fused_recurrent_rwkv7),
}  # fmt: skip


@pytest.fixture
def graphs(native):
    """A function that compiles another into one graph, and the operations of ours that graphs held."""
    torch._dynamo.reset()
    found = []

    def note(graph, _):
        found.append([str(node.target) for node in graph.graph.nodes if "myfla" in str(node.target)])
        return graph.forward

    def compiled(function, **how):
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func

        backend = aot_autograd(fw_compiler=lambda graph, example: make_boxed_func(note(graph, example)))
        return torch.compile(function, fullgraph=True, backend=backend, **how)

    compiled.found = found
    yield compiled
    torch._dynamo.reset()


def gradients(function, tensors):
    leaves = [x.clone().requires_grad_() for x in tensors]
    outputs = [y for y in function(*leaves) if y is not None]
    return (*outputs, *torch.autograd.grad(sum(y.sin().sum() for y in outputs), leaves))


@cases(case=[*((rule, False, "auto") for rule in RULES), ("gated", True, "native"), ("rwkv7", True, "native")])
def test_a_rule_is_one_operation_with_the_eager_numbers_and_gradients(graphs, case):
    torch.manual_seed(0)
    rule, cu, backend = case
    make, op = RULES[rule]
    call, tensors = make(op, cu=PACKED if cu else None, backend=backend)
    got, want = gradients(graphs(call), tensors), gradients(call, tensors)
    assert graphs.found == [[RULE], [RULE_BACKWARD]]
    for a, b in zip(got, want):
        assert_close(a, b, rms=2e-6, largest=1e-4)
    with torch.no_grad():
        for a, b in zip(graphs(call)(*tensors), call(*tensors)):
            assert_close(a, b, rms=2e-6, largest=1e-4)
    assert graphs.found[2:] == [[RULE]]


def test_half_formats_keep_theirs(graphs):
    torch.manual_seed(0)
    call, tensors = gated(chunk_gated_delta_rule)
    tensors = [x.to(torch.bfloat16) for x in tensors]
    for a, b in zip(gradients(graphs(call), tensors), gradients(call, tensors)):
        assert a.dtype == b.dtype
        assert_close(a, b, rms=1e-2, largest=1e-1)


def test_one_graph_serves_every_length(graphs):
    call = graphs(lambda *x: gated(chunk_gated_delta_rule)[0](*x), dynamic=True)
    for T in (5, 17, 130):
        plain, tensors = gated(chunk_gated_delta_rule, T)
        for a, b in zip(call(*tensors), plain(*tensors)):
            assert_close(a, b, rms=2e-6, largest=1e-4)
    assert len(graphs.found) == 1


LAYERS = {
    "gated deltanet": lambda: GatedDeltaNet(hidden_size=24, head_dim=8, num_heads=2, layer_idx=0),
    "kda": lambda: KimiDeltaAttention(hidden_size=24, head_dim=8, num_heads=2, layer_idx=0),
    "rwkv7": lambda: RWKV7Attention(hidden_size=24, head_dim=8, layer_idx=0, num_hidden_layers=2),
}


@cases(kind=list(LAYERS))
def test_a_layer_trains_and_goes_on_from_a_cache_in_one_graph(graphs, kind):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    x = torch.randn(2, 33, 24)
    results = []
    for run in (graphs(layer), layer):
        layer.zero_grad()
        y = run(x)[0]
        y.sin().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    for a, b in zip(*results):
        assert_close(a, b, rms=1e-5, largest=1e-3)
    assert [RULE] in graphs.found and [RULE_BACKWARD] in graphs.found
    layer.eval()
    with torch.no_grad():
        cache = Cache()
        layer(torch.randn(2, 5, 24), past_key_values=cache, use_cache=True)

        def step(x, recurrent_state, conv_state):
            own = Cache()
            own.update(layer_idx=0, recurrent_state=recurrent_state, conv_state=conv_state, offset=5)
            y = layer(x, past_key_values=own, use_cache=True)[0]
            return y, own[0]["recurrent_state"]

        states = (cache[0]["recurrent_state"], cache[0]["conv_state"])
        for a, b in zip(graphs(step)(x, *states), step(x, *states)):
            assert_close(a, b, rms=2e-6, largest=1e-4)
    assert graphs.found[-1] == [RULE]


@cases(dtype=[torch.float64, torch.float32])
def test_what_is_not_theirs_stays_plain(graphs, plain, dtype):
    call, tensors = gated(chunk_gated_delta_rule)
    tensors = [x.to(dtype) for x in tensors]
    if dtype is torch.float64:
        graphs(call)(*tensors)
    else:  # where the distribution is not installed
        plain(graphs(call), *tensors)
    (found,), = graphs.found
    assert found.startswith("myfla.chunk_gated_delta_")


def test_an_exported_program_has_no_operation_of_ours(native):
    if not hasattr(torch, "export"):
        pytest.skip("came with PyTorch 2.1")
    layer = LAYERS["gated deltanet"]().eval()
    program = torch.export.export(layer, (torch.randn(2, 9, 24),))
    assert not [node for node in program.graph.nodes if "myfla" in str(node.target)]


def test_the_operation_passes_the_checks_of_operations(native):
    if not hasattr(torch.library, "opcheck"):
        pytest.skip("came with PyTorch 2.4")
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(1, 5, 2, *size, requires_grad=True) for size in ((4,), (4,), (3,), ()))
    g, beta = -g.exp().detach(), g.sigmoid().detach()
    given = (q, k, v, g, beta, None, None, None, "GATED", 0.5, True, torch.float32, True)
    torch.library.opcheck(native_graph.OP, given)


@pytest.mark.slow
@cases(kind=["gated deltanet", "rwkv7"])
def test_inductor_trains_a_layer_with_them(native, kind):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x, results = LAYERS[kind](), torch.randn(2, 33, 24), []
    for run in (torch.compile(layer, fullgraph=True), layer):
        layer.zero_grad()
        y = run(x)[0]
        y.sin().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    for a, b in zip(*results):
        assert_close(a, b, rms=1e-5, largest=1e-3)

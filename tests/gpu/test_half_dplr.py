"""RWKV-7's matrix-unit form on a CUDA GPU: against the same op in float64, in a CUDA graph, with nothing read back."""

import pytest
import torch

import dplr_cases
from myfla.ops.rwkv7 import chunk_rwkv7
from myfla.testing import cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(4, 512, 4, 64, 64), (2, 300, 2, 64, 64), (1, 4096, 2, 64, 32), (2, 70, 1, 32, 48)]
NAMES = ("o", "state", "r", "w", "k", "v", "a", "b")


def draw(B, T, H, K, V, decay="layer"):
    x = dplr_cases.make(B, T, H, K, V, decay)
    given = (x["r"], x["w"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"])
    return [t.cuda().bfloat16() for t in given]


def run(x, do, backend="torch", **options):
    leaves = [t.detach().requires_grad_() for t in x]
    o, state = chunk_rwkv7(*leaves, output_final_state=True, backend=backend, **options)
    return (o.detach(), state.detach()) + torch.autograd.grad(o, leaves, do.to(o.dtype))


def check(found, x, do):
    for name, a, b in zip(NAMES, found, run([t.double() for t in x], do)):
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-3))
        assert error < 6e-3, (name, error)


@cases(shape=SHAPES, decay=["layer", "gate", "to_40", "spikes", "reset", "all_inf"])
def test_errors_are_those_of_roundings(shape, decay):
    x = draw(*shape, decay)
    do = torch.randn_like(x[3])
    torch.cuda.set_sync_debug_mode("error")  # nothing may wait for the device
    try:
        found = run(x, do)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check(found, x, do)


@cases(shape=SHAPES[:3], bound=[None, -0.607])
def test_compiled_errors_are_those_of_roundings(shape, bound):
    torch._dynamo.reset()
    x = draw(*shape)
    do = torch.randn_like(x[3])
    found = run(x, do, "compiled", lower_bound=bound)
    check(found, x, do)


@cases(backend=["torch", "compiled"], shape=[(2, 256, 2, 64, 64), (1, 4096, 2, 64, 64)])
def test_a_cuda_graph_replays_both_directions(backend, shape):
    torch._dynamo.reset()
    x = draw(*shape)
    do = torch.randn_like(x[3])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(x, do, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x, do, backend)
    for old, new in zip(x, draw(*shape, "spikes")):
        old.copy_(new)
    graph.replay()
    check(captured, x, do)
    for a, b in zip(captured, run(x, do, backend)):
        assert torch.equal(a, b)


def test_a_compiled_graph_takes_this_form():
    torch._dynamo.reset()
    x = draw(*SHAPES[1])
    do = torch.randn_like(x[3])
    leaves = [t.detach().requires_grad_() for t in x]
    o, state = torch.compile(lambda *t: chunk_rwkv7(*t, output_final_state=True), fullgraph=True)(*leaves)
    check((o.detach(), state.detach()) + torch.autograd.grad(o, leaves, do), x, do)

"""The matrix-unit form on a CUDA GPU: against the same op in float64, in a CUDA graph, beside the official kernels."""

import pytest
import torch

from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.testing import cases, rms_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(4, 512, 8, 8, 128, 128), (8, 300, 2, 4, 64, 64), (1, 4096, 4, 4, 128, 64), (2, 70, 1, 2, 32, 48)]


def draw(B, T, H, HV, K, V, decay=0.1):
    x = dict(q=torch.randn(B, T, H, K), k=torch.randn(B, T, H, K), v=torch.randn(B, T, HV, V),
             g=-decay * torch.rand(B, T, HV), beta=torch.rand(B, T, HV))  # fmt: skip
    return {name: t.cuda() if name == "g" else t.cuda().bfloat16() for name, t in x.items()}


def run(x, do, backend="torch"):
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    o = chunk_gated_delta_rule(**leaves, use_qk_l2norm_in_kernel=True, backend=backend)[0]
    return (o.detach(),) + torch.autograd.grad(o, list(leaves.values()), do.to(o.dtype))


def check(found, x, do):
    for name, a, b in zip(["o"] + list(x), found, run({key: t.double() for key, t in x.items()}, do)):
        error = float((a.double() - b).norm() / b.norm())
        assert error < 5e-3, (name, error)


@cases(shape=SHAPES, decay=[0.02, 0.5, 20.0])
def test_errors_are_those_of_roundings(shape, decay):
    x = draw(*shape, decay)
    do = torch.randn_like(x["v"])
    check(run(x, do), x, do)


@cases(shape=SHAPES)
def test_compiled_errors_are_those_of_roundings(shape):
    torch._dynamo.reset()
    x = draw(*shape)
    do = torch.randn_like(x["v"])
    found = run(x, do, "compiled")
    check(found, x, do)


def test_a_compiled_graph_takes_this_form():
    torch._dynamo.reset()
    x = draw(2, 300, 2, 4, 64, 64)
    do = torch.randn_like(x["v"])

    def call(q, k, v, g, beta):
        return chunk_gated_delta_rule(q, k, v, g, beta, use_qk_l2norm_in_kernel=True)[0]

    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    o = torch.compile(call, fullgraph=True)(**leaves)
    check((o.detach(),) + torch.autograd.grad(o, list(leaves.values()), do), x, do)


@cases(backend=["torch", "compiled"], shape=[(2, 256, 2, 2, 64, 64), (1, 4096, 2, 2, 64, 64)])
def test_a_cuda_graph_replays_both_directions(backend, shape, monkeypatch):
    torch._dynamo.reset()
    x = draw(*shape)
    do = torch.randn_like(x["v"])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(x, do, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x, do, backend)
    for name, t in draw(*shape).items():
        x[name].copy_(t)
    graph.replay()
    check(captured, x, do)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)  # take the form of captured calls
    for a, b in zip(captured, run(x, do, backend)):
        assert backend == "compiled" or torch.equal(a, b)


def test_outputs_are_as_exact_as_the_official_kernels():
    pytest.importorskip("fla.ops.gated_delta_rule", exc_type=Exception)
    x = draw(2, 512, 4, 4, 128, 128)
    with torch.no_grad():
        ours, official, exact = (
            chunk_gated_delta_rule(**{key: t.to(kind) for key, t in x.items()}, use_qk_l2norm_in_kernel=True,
                                   backend=backend)[0]
            for backend, kind in (("torch", torch.bfloat16), ("fla", torch.bfloat16), ("torch", torch.float64))
        )  # fmt: skip
    assert rms_error(ours, exact) <= rms_error(official, exact)

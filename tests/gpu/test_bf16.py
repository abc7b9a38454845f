"""The matrix-unit form on a CUDA GPU: against the same op in float64, packed, compiled, in a CUDA graph."""

import pytest
import torch

from bf16_cases import MAKE, NAMES, call, halves
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7
from myfla.testing import cases, rms_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(4, 512, 8, 8, 128, 128), (8, 300, 2, 4, 64, 64), (1, 4096, 4, 4, 128, 64), (2, 70, 1, 2, 32, 48)]
PACKED = [[0, 1, 1, 70, 500, 1200], [0, 3000, 3064, 4096]]
DECAYS = [("gated", 0.02), ("gated", 0.5), ("gated", 20.0), ("kda", 0.1), ("kda", 20.0)]
DECAYS += [("dplr", d) for d in ("layer", "gate", "to_40", "spikes", "reset", "all_inf")]


def draw(family, shape=(2, 300, 2, 4, 64, 64), cu=None, **more):
    return {name: t.cuda() for name, t in halves(MAKE[family](*shape, cu=cu, **more)).items()}


def run(family, x, cu=None, seed=0, **options):
    """o, final states and gradients of a random functional of both."""
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    got = call(family, leaves, 0.3, cu, l2norm=True, **options)
    maker = torch.Generator(device="cuda").manual_seed(seed)
    weights = [torch.randn(t.shape, device="cuda", generator=maker).to(t.dtype) for t in got]
    return (*(t.detach() for t in got), *torch.autograd.grad(got, list(leaves.values()), weights))


def check(family, found, x, cu=None, **options):
    exact = run(family, {name: t.double() for name, t in x.items()}, cu)
    for name, a, b in zip(("o", "state", *NAMES[family]), found, exact):
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-3))
        assert error < 6e-3, (name, error)


@cases(case=DECAYS, shape=SHAPES)
def test_errors_are_those_of_roundings(case, shape):
    family, decay = case
    x = draw(family, shape, decay=decay)
    run(family, x)
    torch.cuda.set_sync_debug_mode("error")  # nothing may wait for the device
    try:
        found = run(family, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check(family, found, x)


@cases(family=list(MAKE), cu=PACKED, fuse=[False, True])
def test_packed_errors_are_those_of_roundings(family, cu, fuse):
    x = draw(family, (1, 1, 2, 4, 64, 64), cu)
    check(family, run(family, x, cu, fuse=fuse), x, cu)


@cases(family=list(MAKE), shape=SHAPES[:3], bound=[None, -0.607])
def test_compiled_errors_are_those_of_roundings(family, shape, bound):
    x = draw(family, shape)
    check(family, run(family, x, fuse=True, lower_bound=None if family == "gated" else bound), x)


@cases(family=list(MAKE), fuse=[False, True], shape=[(2, 256, 2, 2, 64, 64), (1, 4096, 2, 2, 64, 64)])
def test_a_cuda_graph_replays_both_directions(family, fuse, shape):
    x = draw(family, shape)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            captured_call(family, x, fuse)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = captured_call(family, x, fuse)
    for name, t in draw(family, shape).items():
        x[name].copy_(t)
    graph.replay()
    for a, b in zip(captured, captured_call(family, x, fuse)):
        assert torch.equal(a, b)


def captured_call(family, x, fuse):
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    o, state = call(family, leaves, 0.3, fuse=fuse)
    return (o.detach(), state.detach(), *torch.autograd.grad(o.float().sum() + state.sum(), list(leaves.values())))


@cases(op=["gated", "rwkv7"], packed=[False, True])
def test_a_compiled_graph_takes_this_form(op, packed):
    torch._dynamo.reset()
    cu = torch.tensor([0, 100, 300], device="cuda") if packed else None
    x = draw("gated" if op == "gated" else "dplr", (1, 300, 4, 4, 64, 64), cu=[0, 100, 300] if packed else None)

    def gated(q, k, v, g, beta, state, cu):
        return chunk_gated_delta_rule(q, k, v, g, beta, initial_state=state, cu_seqlens=cu)[0]

    def rwkv7(r, w, k, v, kk, a, state, cu):
        return chunk_rwkv7(r, w, k, v, -kk, kk * a, initial_state=state, cu_seqlens=cu)[0]

    function, found = {"gated": gated, "rwkv7": rwkv7}[op], []
    for form, kind in ((torch.compile(function, fullgraph=True), None), (function, torch.float64)):
        leaves = [t.detach().to(kind or t.dtype).requires_grad_() for t in x.values()]
        o = form(*leaves, cu)
        found.append((o, *torch.autograd.grad(o.sum(), leaves)))
    for a, b in zip(*found):
        assert rms_error(a, b) < 6e-3 * max(1.0, float(b.abs().max() == 0))


def test_outputs_are_as_exact_as_the_official_kernels():
    pytest.importorskip("fla.ops.gated_delta_rule", exc_type=Exception)
    x = draw("gated", (2, 512, 4, 4, 128, 128))
    x.pop("initial_state")
    with torch.no_grad():
        ours, official, exact = (
            chunk_gated_delta_rule(**{key: t.to(kind) for key, t in x.items()}, use_qk_l2norm_in_kernel=True,
                                   backend=backend)[0]
            for backend, kind in (("torch", torch.bfloat16), ("fla", torch.bfloat16), ("torch", torch.float64))
        )  # fmt: skip
    assert rms_error(ours, exact) <= rms_error(official, exact)

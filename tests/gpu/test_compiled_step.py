"""A compiled decoding step on a CUDA GPU: the numbers of the plain one, in place, and in a CUDA graph."""

import pytest
import torch

from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
from myfla.testing import assert_close, cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw(B, H, HV, K, V):
    q, k, v = torch.randn(B, 1, H, K), torch.randn(B, 1, H, K), torch.randn(B, 1, HV, V)
    x = dict(q=q.bfloat16(), k=k.bfloat16(), v=v.bfloat16(), g=-torch.rand(B, 1, HV), beta=torch.rand(B, 1, HV))
    return {name: t.cuda() for name, t in x.items()}, torch.randn(B, HV, K, V, device="cuda")


def step(x, state, backend, **more):
    more = dict(output_final_state=True, use_qk_l2norm_in_kernel=True, backend=backend, **more)
    with torch.no_grad():
        return fused_recurrent_gated_delta_rule(**x, initial_state=state, **more)


@cases(shape=[(1, 2, 2, 32, 32), (3, 2, 4, 64, 48), (40, 16, 16, 128, 128)], value_first=[False, True],
       inplace=[False, True])  # fmt: skip
def test_a_compiled_step_is_the_plain_one(shape, value_first, inplace):
    torch._dynamo.reset()
    x, state = draw(*shape)
    want, last = step(x, state, "torch")
    given = state.transpose(2, 3).contiguous() if value_first else state.clone()
    o, final = step(x, given, "compiled", state_v_first=value_first, inplace_final_state=inplace)
    assert (final.data_ptr() == given.data_ptr()) == inplace and final.is_contiguous()
    assert_close(o, want, 5e-3)
    assert_close(final.transpose(2, 3) if value_first else final, last, 1e-5)


@cases(value_first=[False, True])
def test_a_cuda_graph_replays_steps_in_place(value_first):
    torch._dynamo.reset()
    x, state = draw(4, 2, 2, 64, 64)
    own = state.transpose(2, 3).contiguous() if value_first else state.clone()
    how = dict(state_v_first=value_first, inplace_final_state=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(x, own, "compiled", **how)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, _ = step(x, own, "compiled", **how)
    own.copy_(state.transpose(2, 3) if value_first else state)
    for _ in range(3):
        for name, t in draw(4, 2, 2, 64, 64)[0].items():
            x[name].copy_(t)
        graph.replay()
        want, state = step(x, state, "torch")
        assert_close(o, want, 5e-3)
        assert_close(own.transpose(2, 3) if value_first else own, state, 1e-5)


def test_a_compiled_graph_decodes_with_this_step():
    torch._dynamo.reset()
    x, state = draw(3, 2, 4, 32, 32)
    compiled = torch.compile(step, fullgraph=True)
    for mine, want in zip(compiled(x, state, "torch"), step(x, state, "torch")):
        assert_close(mine, want, 5e-3)

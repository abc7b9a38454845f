"""The half-precision chunk form under a compiler: its passes as one sees them, and the whole as one operation."""

import pytest
import torch

from half_errors import draw, errors
from myfla.ops.common import half_choice
from myfla.ops.common.half_tokens import Cut
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, half_fwd, half_graph
from myfla.testing import cases

SHAPES = [(1, 40, 1, 2, 8, 4), (2, 128, 2, 2, 4, 4)]


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "custom_op"), reason="compiles with PyTorch 2.4")
@cases(shape=SHAPES, unit=[True, False], linear=[True, False])
def test_passes_as_a_compiler_sees_them_are_the_same(shape, unit, linear, monkeypatch):
    """The branches that only a compiler takes, without code generation."""
    torch._dynamo.reset()
    seen = set()

    def compiled(function):
        seen.add(function.__name__)
        return torch.compile(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(half_fwd, "compiled", compiled)
    B, T, _, HV = shape[:4]
    cut = Cut(B, T, HV, 64, 2, 2) if T == 128 else None
    how = dict(linear=linear, fuse=True)
    assert max(errors(draw(*shape, 0.5, beta=2.0), unit, cut, **how).values()) < 1e-11
    assert len(seen) == 11


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_vmap"), reason="needs PyTorch 2.5")
def test_a_compiled_graph_holds_this_form_as_one_operation(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(half_choice, "has_matrix_units", lambda device: True)
    monkeypatch.setattr(half_graph, "_fuses", lambda device: False)
    graphs, forwards = [], []
    monkeypatch.setattr(half_graph, "half_forward", lambda *x: forwards.append(1) or half_fwd.half_forward(*x))

    def backend(module, examples):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(module)
        return aot_eager(module, examples)

    def run(*x):
        return chunk_gated_delta_rule(*x[:5], initial_state=x[5], output_final_state=True, use_qk_l2norm_in_kernel=True)

    compiled, lengths = torch.compile(run, fullgraph=True, backend=backend), (40, 100, 300, 17)
    for tokens in lengths:
        x = list(draw(2, tokens, 2, 4, 16, 16, 0.1, torch.bfloat16).values())
        found = []
        for function in (compiled, run):
            leaves = [t.clone().requires_grad_() for t in x]
            o, state = function(*leaves)
            grads = torch.autograd.grad(o.float().sum() + state.sum(), leaves)
            found.append((o, state, *grads))
        assert all(torch.equal(a, b) for a, b in zip(*found))
    assert len(forwards) == len(lengths)  # the backward runs none
    assert len(graphs) <= 3  # one for all above 32 tokens but the first, one for up to 32

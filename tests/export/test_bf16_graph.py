"""The form for matrix units under a compiler: its passes as one sees them, and the whole as one operation."""

import pytest
import torch

from bf16_cases import MAKE, NAMES, PACKED, call, double, errors, halves, on_any_device
from myfla.backends.compiler import Compiled
from myfla.ops._delta.bf16 import chunks, form, graph
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule
from myfla.testing import cases

SHARED = {"load_into", "invert_leaves", "join_blocks", "join_inverse", "advance", "_store", "dense_places"}
GATED = {"token_decays", "scale_queries", "scale_keys", "mask_products", "mask_products_bwd", "combine_grads"}
CHANNELS = {"sum_decays", "load_tokens", "join_products", "split_products", "combine_grads", "decay_grad"}
FAST = [("gated", PACKED, None), ("dplr", None, -0.607)]
MORE = [("gated", None, None), ("kda", PACKED, None), ("kda", None, -0.607), ("dplr", PACKED, None)]


@pytest.mark.skipif(not hasattr(getattr(torch, "compiler", None), "is_compiling"), reason="compiles with PyTorch 2.3")
@pytest.mark.parametrize("case", [*FAST, *(pytest.param(x, marks=pytest.mark.slow) for x in MORE)])
def test_passes_as_a_compiler_sees_them_are_the_same(case, monkeypatch):
    """The branches that only a compiler takes, without code generation."""
    family, cu, bound = case
    torch._dynamo.reset()
    seen = {}

    def compiled(function):
        return seen.setdefault(function.__name__, Compiled(function, backend="eager"))

    monkeypatch.setattr(form, "compiled", compiled)
    monkeypatch.setattr(chunks, "compiled", compiled)
    options = dict(l2norm=True, fuse=True, lower_bound=bound, chunk=32)
    x = double(MAKE[family](2, 70, 1, 2, 8, 4, cu=cu))
    assert max(errors(family, x, cu=cu, **options).values()) < 1e-11
    expected = GATED if family == "gated" else CHANNELS
    assert set(seen) - SHARED == expected


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_vmap"), reason="needs PyTorch 2.5")
@cases(case=[("gated", None), ("kda", -0.607), ("dplr", None)])
def test_a_compiled_graph_holds_this_form_as_one_operation(case, monkeypatch):
    family, bound = case
    torch._dynamo.reset()
    monkeypatch.setattr(graph, "_fuses", lambda device: False)
    forwards, graphs = [], []
    monkeypatch.setattr(graph, "forward", lambda *x: forwards.append(1) or form.forward(*x))

    def backend(module, examples):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(module)
        return aot_eager(module, examples)

    def run(*x):
        which = {"gated": graph.GATED_DELTA, "kda": graph.KDA, "dplr": graph.DPLR}[family]
        return graph.graph_chunks(which, x[:-1], x[-1], 0.3, l2norm=family != "dplr", lower_bound=bound)

    def eager(*x):
        which = {"gated": graph.GATED_DELTA, "kda": graph.KDA, "dplr": graph.DPLR}[family]
        return chunks.bf16_chunks(which, x[:-1], x[-1], 0.3, l2norm=family != "dplr", lower_bound=bound)

    function, lengths = torch.compile(run, fullgraph=True, backend=backend), (40, 100, 300, 17)
    for tokens in lengths:
        x = halves(MAKE[family](2, tokens, 2, 4, 16, 16))
        given = [x[name] for name in NAMES[family]]
        if family == "dplr":
            given = [x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"], x["initial_state"]]
        found = []
        for each in (function, eager):
            leaves = [t.clone().requires_grad_() for t in given]
            o, state = each(*leaves)
            found.append((o, state, *torch.autograd.grad(o.float().sum() + state.sum(), leaves)))
        assert all(torch.equal(a, b) for a, b in zip(*found))
    assert len(forwards) == len(lengths)  # the backward runs none
    assert len(graphs) <= 3  # one for all above 32 tokens but the first, one for up to 32


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_vmap"), reason="needs PyTorch 2.5")
@cases(family=["gated", "dplr"], cu=[None, PACKED])
def test_a_compiled_op_takes_this_form(family, cu, monkeypatch):
    """Packed sequences too, with gradients."""
    torch._dynamo.reset()
    on_any_device(monkeypatch)
    monkeypatch.setattr(graph, "_fuses", lambda device: False)
    x = halves(MAKE[family](2, 100, 2, 2, 16, 16, cu=cu))
    offsets = None if cu is None else torch.tensor(cu)

    def run(x):
        more = dict(initial_state=x["initial_state"], output_final_state=True, cu_seqlens=offsets, scale=0.3)
        if family == "gated":
            return chunk_gated_delta_rule(x["q"], x["k"], x["v"], x["g"], x["beta"], **more)
        return chunk_dplr_delta_rule(x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"], **more)

    found = []
    for each in (torch.compile(run, fullgraph=True, backend="aot_eager"), lambda x: call(family, x, 0.3, cu)):
        leaves = {name: t.clone().requires_grad_() for name, t in x.items() if t is not None}
        o, state = each({**x, **leaves})
        grads = torch.autograd.grad(o.float().sum() + state.sum(), list(leaves.values()), allow_unused=True)
        found.append((o, state, *(g for g in grads if g is not None)))
    assert len(found[0]) == len(found[1]) > 7
    assert all(torch.equal(mine, eager) for mine, eager in zip(*found))

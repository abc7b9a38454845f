"""Compilers and exporters are told apart, in every PyTorch."""

import pytest
import torch

from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.testing import cases
from myfla.utils import tracing

if not hasattr(torch.library, "custom_op"):
    pytest.skip("needs PyTorch 2.4", allow_module_level=True)

FLAGGED = hasattr(torch.compiler, "_is_exporting_flag")


class Asks(torch.nn.Module):
    def forward(self, x):
        return x + (10 if tracing.exporting() else 20 if tracing.compiling() else 30)


def asked(module, size=2):
    return module(torch.zeros(size))[0].item()


def exported(module, *inputs, strict):
    return torch.export.export(module, inputs, strict=strict)


def test_eager_code_is_neither_compiled_nor_exported():
    assert asked(Asks()) == 30 and not tracing.exporting() and not tracing.compiling()


def test_a_compiled_graph_is_no_export_even_after_one():
    torch._dynamo.reset()
    assert asked(torch.compile(Asks(), backend="aot_eager", fullgraph=True)) == 20
    exported(Asks(), torch.zeros(2), strict=False)
    assert asked(torch.compile(Asks(), backend="aot_eager", fullgraph=True), 3) == 20
    assert asked(Asks()) == 30


@cases(strict=[True, False] if FLAGGED else [False])
def test_an_export_is_one(strict):
    assert asked(exported(Asks(), torch.zeros(2), strict=strict).module()) == 10


class Rule(torch.nn.Module):
    def forward(self, q, k, v, g, beta):
        return chunk_gated_delta_rule(q, k, v, g=g, beta=beta)[0]


def inputs():
    q, v = torch.randn(1, 40, 2, 8), torch.randn(1, 40, 2, 8)
    return q, torch.nn.functional.normalize(q, dim=-1), v, -torch.rand(1, 40, 2), torch.rand(1, 40, 2)


def operations(graph):
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


@cases(strict=[True, False] if FLAGGED else [False])
def test_an_exported_rule_holds_nothing_but_operations_of_torch(strict):
    graph = exported(Rule(), *inputs(), strict=strict).graph
    assert not any("myfla" in name for name in operations(graph))


def test_a_compiled_rule_is_one_operation():
    seen = []

    def backend(module, example):
        seen.append(operations(module.graph))
        return module.forward

    torch._dynamo.reset()
    torch.compile(Rule(), backend=backend, fullgraph=True)(*inputs())
    assert len(seen) == 1 and any("myfla" in name for name in seen[0])

"""One exported graph serves every length: it makes no choice by size."""

import inspect

import pytest
import torch

from app.export.formats import any_size, write_torch_export
from app.export.modules import WholeEncoder
from app.export.parity import compare_whole
from encoders.batch import make_layout
from encoders.blocks import StackCall
from encoders.inputs import enter
from export_subjects import small_encoder
from myfla.layers import short_convs
from myfla.testing import assert_close, cases

DEFERRED = "prefer_deferred_runtime_asserts_over_guards"
pytestmark = pytest.mark.skipif(
    not hasattr(torch, "export") or DEFERRED not in inspect.signature(torch.export.export).parameters,
    reason="this PyTorch makes a rule of every question about a size")

STEMS = [("conv", 2, "bidirectional"), ("conv", 4, "causal"), ("conv", 8, "bidirectional"),
         ("patch", 3, "causal"), ("patch", 4, "bidirectional"),
         ("inception", 1, "causal"), ("inception", 1, "bidirectional"),
         ("inception", 2, "bidirectional"), ("inception", 4, "bidirectional"), ("inception", 8, "bidirectional")]


class Entry(torch.nn.Module):
    """A stem alone, with the lengths that it leaves."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem

    def forward(self, x):
        hidden, layout = enter(self.stem, x, make_layout(x), StackCall())
        return hidden, layout.lengths


@cases(stem=STEMS)
def test_an_exported_stem_serves_every_length(stem):
    kind, stride, direction = stem
    more = {} if kind == "patch" else {"stem_kernel": 9}
    entry = Entry(small_encoder("gated_deltanet", stem=kind, stem_stride=stride, direction=direction, **more).input)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)},)
    with torch.no_grad():
        with any_size():
            graph = torch.export.export(entry, (torch.randn(3, 101, 3),), dynamic_shapes=shapes, strict=False).module()
        for batch, length in [*((2, n) for n in range(1, 2 * stride + 2)), (1, 1), (1, 64), (4, 203)]:
            x = torch.randn(batch, length, 3)
            (got, lengths), (want, real) = graph(x), entry(x)
            assert got.shape == want.shape == (batch, -(-length // stride), 8) and torch.equal(lengths, real)
            assert_close(got, want, rms=1e-6)


def test_a_graph_recorded_at_a_small_size_serves_larger_ones(tmp_path, monkeypatch):
    """Eagerly, three convolutions become one up to some size: a graph has no such bound."""
    encoder = small_encoder("gated_deltanet", stem="conv", stem_stride=2)
    sizes = 3 * 101 * sum(encoder.blocks[0].mixer.conv_channels)
    monkeypatch.setattr(short_convs, "FUSED_ON_CPU", sizes)
    whole = WholeEncoder(encoder)
    with torch.no_grad():
        runner = write_torch_export(whole, (torch.zeros(3, 101, 3),), tmp_path / "encoder.pt2", dynamic=True)
        assert compare_whole(whole, runner, [(1, 1), (2, 2), (1, 3), (5, 102), (2, 333)]) <= 1e-5

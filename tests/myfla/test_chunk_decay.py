"""Decays between the tokens of a chunk, as the chunk form of the gated delta rule takes them."""

import torch

from myfla.ops.common.scratch import Scratch
from myfla.ops.gated_delta_rule.chunk_decay import causal_masks, pair_decay
from myfla.testing import cases


def pairs(g, scale, dtype):
    """`pair_decay` of log decays ``g [M, C]``, ``[M, 2, C, C]``."""
    size, chunk = g.shape
    out = torch.empty(size, 2 * chunk, chunk, dtype=dtype)
    scratch, wide = Scratch(out, dtype, size), Scratch(out, torch.float64, size)
    return pair_decay(g.cumsum(1), causal_masks(chunk, scale, out), scratch, wide, out).view(size, 2, chunk, chunk)


def draw(decay, chunk):
    return -decay * torch.rand(3, chunk, generator=torch.Generator().manual_seed(chunk), dtype=torch.float64)


@cases(decay=[0.0, 1e-3, 1.0, 20.0, 100.0], chunk=[16, 32, 64], dtype=[torch.float32, torch.float64])
def test_each_pair_decays_by_what_lies_between(decay, chunk, dtype):
    sums = draw(decay, chunk).cumsum(1)
    exact = (sums[:, :, None] - sums[:, None, :]).tril().exp()
    want = torch.stack([0.5 * exact.tril(), exact.tril(-1)], 1)
    got = pairs(draw(decay, chunk), 0.5, dtype)
    assert (got.double() - want).abs().max() <= 2 * torch.finfo(dtype).eps


@cases(decay=[20.0, 100.0], chunk=[16, 64], dtype=[torch.float32, torch.float64])
def test_what_is_all_but_forgotten_is_zero_not_subnormal(decay, chunk, dtype):
    got = pairs(draw(decay, chunk), 1.0, dtype)
    assert bool(((got == 0) | (got >= torch.finfo(dtype).tiny)).all())
    assert bool((got == 0).tril().any())


def test_a_growing_memory_grows():
    got = pairs(torch.full((1, 16), 0.5, dtype=torch.float64), 1.0, torch.float32)
    assert abs(got[0, 1, 15, 0].item() / 2.718281828459045**7.5 - 1) < 1e-6

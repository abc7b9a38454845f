"""Decays between the tokens of a chunk, as the chunk form of the gated delta rule takes them."""

import torch

from myfla.ops._delta.chunk.decay import decay_mask
from myfla.testing import cases


def pairs(g, dtype):
    """`decay_mask` of log decays ``g [M, C]``."""
    size, chunk = g.shape
    out = torch.full((size, chunk, chunk), float("nan"), dtype=dtype)
    return decay_mask(g.cumsum(1), out)


def draw(decay, chunk):
    return -decay * torch.rand(3, chunk, generator=torch.Generator().manual_seed(chunk), dtype=torch.float64)


@cases(decay=[0.0, 1e-3, 1.0, 20.0, 100.0], chunk=[16, 32, 64], dtype=[torch.float32, torch.float64])
def test_each_pair_decays_by_what_lies_between(decay, chunk, dtype):
    sums = draw(decay, chunk).cumsum(1)
    want = (sums[:, :, None] - sums[:, None, :]).tril().exp().tril()
    got = pairs(draw(decay, chunk), dtype)
    assert (got.double() - want).abs().max() <= 2 * torch.finfo(dtype).eps


@cases(decay=[200.0, 1000.0], chunk=[16, 64], dtype=[torch.float32, torch.float64])
def test_what_is_all_but_forgotten_is_zero_not_subnormal(decay, chunk, dtype):
    got = pairs(draw(decay, chunk), dtype)
    assert bool(((got == 0) | (got >= torch.finfo(dtype).tiny)).all())
    assert bool((got == 0).tril().any())


def test_a_growing_memory_grows():
    got = pairs(torch.full((1, 16), 0.5, dtype=torch.float64), torch.float32)
    assert abs(got[0, 15, 0].item() / 2.718281828459045**7.5 - 1) < 1e-6

"""The same encoder on an accelerator: layouts, caches, gradients and files. Skipped where there is none."""

import os

import pytest
import torch

from encoders import load_encoder
from myfla.testing import assert_close, cases
from small_encoders import NAMES, small

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic algorithms
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
POOLINGS = ("mean", "last", "max", "attention")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def layouts(x):
    """The same batch dense, by lengths, by mask (on the CPU as well) and packed."""
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    yield x, {}
    yield x, dict(lengths=[6, 2])
    yield x, dict(attention_mask=mask)
    yield x, dict(attention_mask=mask.to(x.device))
    yield x.reshape(1, 12, 3), dict(cu_seqlens=torch.tensor([0, 5, 5, 12], device=x.device))


@cases(name=NAMES, direction=["causal", "bidirectional"], pooling=POOLINGS)
def test_every_layout_gives_what_it_gives_on_the_cpu(name, direction, pooling):
    here = small(name, direction=direction, pooling=pooling).train()  # cuDNN has no backward of a GRU in evaluation
    there = small(name, direction=direction, pooling=pooling).train().cuda()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    for (a, arguments), (b, same) in zip(layouts(x), layouts(x.cuda())):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        want, got = here(a, **arguments), there(b, **same)
        assert got.hidden.is_cuda and got.embedding.is_cuda
        assert_close(got.hidden, want.hidden, rms=1e-10)
        assert_close(got.embedding, want.embedding, rms=1e-10)
        (want.embedding ** 2).sum().backward()
        (got.embedding ** 2).sum().backward()
        assert_close(b.grad, a.grad, rms=1e-9)


@cases(name=NAMES)
def test_pieces_equal_the_whole(name):
    encoder, x = small(name).cuda(), torch.randn(2, 9, 3, dtype=torch.float64).cuda()
    whole, cache, parts = encoder(x), None, []
    with torch.no_grad():
        for piece in x.split([1, 0, 5, 3], dim=1):
            out = encoder(piece, lengths=[piece.shape[1]] * 2, cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.hidden)
    assert_close(torch.cat(parts, 1), whole.hidden, rms=1e-10)


@cases(name=NAMES)
def test_an_encoder_is_loaded_onto_a_device(name, tmp_path):
    encoder = small(name, torch.float32).cuda()
    encoder.save(tmp_path)
    x = torch.randn(2, 5, 3).cuda()
    assert torch.equal(load_encoder(tmp_path, device="cuda")(x).embedding, encoder(x).embedding)
    assert load_encoder(tmp_path)(x.cpu()).embedding.device.type == "cpu"

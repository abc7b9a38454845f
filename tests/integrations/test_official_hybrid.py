"""Hybrid models go both ways between this library and the official one, where that is installed."""

import pytest
import torch

pytest.importorskip("fla.models")  # of flash-linear-attention; fla-core has the rest

import fla.layers.attn as official_attention
from fla.models import GatedDeltaNetConfig as OfficialConfig
from fla.models import GatedDeltaNetForCausalLM as Official

from myfla.models import load_model
from myfla.modules.rotary import rotate_by_position
from myfla.testing import assert_close, cases
from small_models import small_model

KINDS = {
    "plain": dict(layers=[1], num_heads=4),
    "everything": dict(layers=[0, 2], num_heads=4, num_kv_heads=2, qkv_bias=True, window_size=4, rope_theta=500.0),
    "two groups": [dict(layers=[0], num_heads=2), dict(layers=[2], num_heads=4, window_size=6)],
}


@pytest.fixture(autouse=True)
def buildable(monkeypatch):
    """Without flash-attn the official layer refuses to be built; its parameters need none."""
    if official_attention.flash_attn_func is None:
        monkeypatch.setattr(official_attention, "flash_attn_func", object())


def assert_same_model(one, other):
    assert one.config.attn == other.config.attn
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name].float(), right[name].float()) for name in left)


@cases(kind=sorted(KINDS))
def test_the_official_library_reads_what_is_written_here(kind, tmp_path):
    ours = small_model("gated_deltanet", num_hidden_layers=3, attn=KINDS[kind])
    ours.save_pretrained(tmp_path)
    assert_same_model(Official.from_pretrained(tmp_path), ours)


@cases(kind=sorted(KINDS))
def test_what_the_official_library_writes_is_read_here(kind, tmp_path):
    fields = small_model("gated_deltanet", num_hidden_layers=3, attn=KINDS[kind]).config.to_dict()
    theirs = Official(OfficialConfig(**fields))
    theirs.save_pretrained(tmp_path)
    assert_same_model(theirs, load_model(tmp_path))


def test_rotations_are_the_official_ones():
    official = official_attention.RotaryEmbedding(8, base=300.0)
    official._update_cos_sin_cache(50, device=torch.device("cpu"), dtype=torch.float32)
    x = torch.randn(1, 50, 2, 8)
    cos, sin = official._cos_cached[None, :, None], official._sin_cached[None, :, None]
    first, second = x.split(4, -1)
    want = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    assert_close(rotate_by_position(x, torch.arange(50), 300.0), want, rms=1e-6)


def test_a_hybrid_computes_what_the_official_one_does():
    if not torch.cuda.is_available():
        pytest.skip("the official kernels need a GPU")
    pytest.importorskip("flash_attn")
    ours = small_model("gated_deltanet", num_hidden_layers=3, attn=dict(layers=[1], num_heads=2)).cuda().bfloat16()
    theirs = Official(OfficialConfig(**ours.config.to_dict())).cuda().bfloat16().eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(1, 61, (2, 90), device="cuda")
    with torch.no_grad():
        assert_close(ours(ids).logits.float(), theirs(ids).logits.float(), rms=3e-2)

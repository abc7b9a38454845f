"""Layers in float16, with large inputs and no norm in front: finite wherever the exact result is, as documented."""

import copy

import pytest
import torch
from torch import nn

from myfla.layers import Attention, GatedDeltaNet, RWKV7Attention
from myfla.layers.projections import _half_products
from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.modules import GatedMLP
from myfla.testing import assert_close, cases

D = 128
RWKV7 = dict(hidden_size=D, head_dim=32, layer_idx=0, num_hidden_layers=12)
LAYERS = {
    "rwkv7": lambda: RWKV7Attention(**RWKV7),
    "rwkv7_fused_norm": lambda: RWKV7Attention(**RWKV7, fuse_norm=True),
    "rwkv7_wide": lambda: RWKV7Attention(**RWKV7, value_dim=2 * D),
    "gdn": lambda: GatedDeltaNet(hidden_size=D, head_dim=32, num_heads=4),
    "gdn_plain": lambda: GatedDeltaNet(hidden_size=D, head_dim=32, num_heads=4, use_short_conv=False, use_gate=False),
    "attention": lambda: Attention(hidden_size=D, num_heads=4),
    "ffn": lambda: RWKV7FeedForward(D, layer_idx=0, num_hidden_layers=12),
    "mlp": lambda: GatedMLP(D),
}
LIMIT = {"ffn": 30, "mlp": 100}  # the square, and the product, that their docstrings speak of


@pytest.mark.filterwarnings("ignore:GatedDeltaNet")
@cases(name=list(LAYERS), scale=[1, 30, 100, 200], tokens=[20, 80], gradients=[False, True])
def test_a_large_input_gives_what_float64_gives(name, scale, tokens, gradients):
    if not _half_products():
        pytest.skip("this PyTorch multiplies no float16 on a CPU")
    if scale > LIMIT.get(name, scale):
        pytest.skip("beyond the documented range")
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    for weight in layer.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.orthogonal_(weight)  # RWKV-7 begins with output maps of zero
    x = (scale * torch.randn(2, tokens, D)).half()
    with torch.set_grad_enabled(gradients):
        got, want = copy.deepcopy(layer).half()(x), layer.double()(x.double())
    got, want = (y[0] if isinstance(y, tuple) else y for y in (got, want))
    assert got.dtype == torch.float16 and torch.isfinite(got).all()
    assert_close(got.detach().double(), want.detach(), rms=5e-3)

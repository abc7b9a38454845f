"""RWKV-7's feed-forward block: values, cache, padding, packing, initialisation, messages."""

import math

import torch

from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CacheError


def build(dtype=torch.float64, **more):
    torch.manual_seed(0)
    block = RWKV7FeedForward(**{"hidden_size": 6, "layer_idx": 1, "num_hidden_layers": 3, "dtype": dtype, **more})
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return block


def loop(block, x, last=None):
    """One sequence `[T, D]`, token by token."""
    outputs, before = [], torch.zeros_like(x[0]) if last is None else last
    for token in x:
        mixed = token + (before - token) * block.x_k
        outputs.append(block.value.weight @ torch.relu(block.key.weight @ mixed) ** 2)
        before = token
    return torch.stack(outputs)


def test_block_equals_the_token_loop():
    block, x = build(), torch.randn(2, 9, 6, dtype=torch.float64)
    y, state = block(x)
    assert state is None
    for row in range(2):
        assert_close(y[row], loop(block, x[row]), rms=1e-12)


@cases(cuts=[[4], [0, 1, 1, 2], list(range(1, 9))])
def test_cached_pieces_equal_the_whole(cuts):
    block, x, cache = build(), torch.randn(2, 9, 6, dtype=torch.float64), Cache()
    bounds = [0, *cuts, 9]
    pieces = []
    for i, j in zip(bounds[:-1], bounds[1:]):
        y, same = block(x[:, i:j], state=cache)
        assert same is cache
        pieces.append(y)
    assert_close(torch.cat(pieces, 1), block(x)[0], rms=1e-12)
    assert torch.equal(cache[1]["ffn_state"], x[:, -1]) and cache.get_seq_length(1) == 0  # attention counts tokens
    kept = cache[1]["ffn_state"].clone()
    block(x[:, :2], state=cache, use_cache=False)
    assert torch.equal(cache[1]["ffn_state"], kept)


@cases(junk=[0.0, float("nan")])
def test_pads_and_packing_are_invisible(junk):
    block, x = build(), torch.randn(2, 8, 6, dtype=torch.float64)
    mask = torch.tensor([[0, 1, 0, 1, 1, 0, 1, 0], [0] * 8])
    given = torch.where(mask.bool()[..., None], x, torch.full_like(x, junk))
    cache = Cache()
    y, _ = block(given, mask, cache)
    assert_close(y[0, mask[0].bool()], loop(block, x[0, mask[0].bool()]), rms=1e-12)
    assert not y[~mask.bool()].any()
    assert torch.equal(cache[1]["ffn_state"], torch.stack([x[0, 6], torch.zeros(6, dtype=torch.float64)]))
    packed = block(x[:1], cu_seqlens=torch.tensor([0, 3, 3, 8]))[0][0]
    assert_close(packed, torch.cat([loop(block, x[0, :3]), loop(block, x[0, 3:])]), rms=1e-12)


def test_block_gradients_equal_finite_differences():
    block, x = build(intermediate_size=5), torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: block(x)[0], (x,))


def test_block_parameters_begin_by_the_official_law():
    block = RWKV7FeedForward(20, layer_idx=1, num_hidden_layers=4)
    assert {name: tuple(p.shape) for name, p in block.state_dict().items()} == {
        "x_k": (20,), "key.weight": (96, 20), "value.weight": (20, 96)}
    for n in (0, 7, 19):
        assert math.isclose(block.x_k.detach()[n], 1 - (n / 20) ** (0.75**4), abs_tol=1e-6)
    key = block.key.weight.detach()
    assert torch.allclose(key.t() @ key, torch.eye(20), atol=1e-5) and not block.value.weight.any()
    assert RWKV7FeedForward(20, hidden_ratio=3).intermediate_size == 64
    assert RWKV7FeedForward(20, intermediate_size=7, layer_idx=0).key.weight.shape == (7, 20)
    meta = RWKV7FeedForward(20, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {("meta", torch.bfloat16)}
    alive = meta.to_empty(device="cpu")
    alive.reset_parameters()
    assert not alive.value.weight.any() and alive.x_k[0] == 1


@cases(name=["sqrelu", "relu", "silu", "swish", "sigmoid", "gelu"])
def test_every_activation_runs(name):
    block = build(hidden_act=name)
    assert torch.isfinite(block(torch.randn(1, 3, 6, dtype=torch.float64))[0]).all()


def test_wrong_arguments_are_refused_by_name():
    who = "RWKV7FeedForward"
    with raises(TypeError, who, "unknown keyword 'hidden_rato'", "did you mean 'hidden_ratio'?"):
        RWKV7FeedForward(6, hidden_rato=2)
    for more, text in (
        (dict(hidden_act="cube"), "hidden_act must be one of sqrelu"),
        (dict(hidden_ratio=0), "hidden_ratio must be a positive number; got 0"),
        (dict(intermediate_size=0), "intermediate_size must be a positive integer; got 0"),
        (dict(layer_idx=3, num_hidden_layers=3), "num_hidden_layers must be an integer from 4 for layer_idx=3; got 3"),
    ):
        with raises(ValueError, who, text):
            RWKV7FeedForward(6, **more)
    block, x = build(), torch.randn(2, 3, 6, dtype=torch.float64)
    with raises(ValueError, who, "hidden_states must have shape [B, T, 6]"):
        block(x[..., 1:])
    with raises(ValueError, who, "cu_seqlens", "batch size 2"):
        block(x, cu_seqlens=torch.tensor([0, 3]))
    with raises(TypeError, f"{who}.forward: unknown keyword 'attnetion_mask'", "did you mean 'attention_mask'?"):
        block(x, attnetion_mask=None)
    cache = Cache()
    block(x, state=cache)
    with raises(CacheError, who, "ffn_state batch must be 1; got 2"):
        block(x[:1], state=cache)
    with raises(ValueError, who, "layer_idx"):
        build(layer_idx=None, num_hidden_layers=None)(x, state=Cache())

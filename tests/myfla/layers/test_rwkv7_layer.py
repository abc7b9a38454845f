"""The RWKV-7 layer: values, gradients, padding, packing, cache."""

import numpy as np
import torch

import rwkv7_numpy
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases
from rwkv7_layers import build, inputs

MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1], [0] * 9 + [1]],
    "right": [[1] * 7 + [0] * 3, [1] * 1 + [0] * 9],
    "inner": [[0, 1, 0, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 1, 1, 1, 1]],
    "empty_row": [[0] * 10, [1] * 10],
    "all_pads": [[0] * 10, [0] * 10],
    "no_pads": [[1] * 10, [1] * 10],
}


def witness(layer, x, v_first=None, state=None, last=None):
    """The NumPy loop over one sequence."""
    parameters = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    first = None if v_first is None else v_first.double().numpy()
    eps = layer.head_dim * layer.norm_eps
    return rwkv7_numpy.time_mixing(parameters, x.double().numpy(), layer.num_heads, eps, first, state, last,
                                   key_eps=1e-6 if layer.fuse_norm else None)


@cases(layer_idx=[0, 2], fuse_norm=[False, True], value=[None, 36, 12], affine=[True, False])
def test_layer_equals_the_equations_of_the_paper(layer_idx, fuse_norm, value, affine):
    layer = build(layer_idx, value=value, fuse_norm=fuse_norm, elementwise_affine=affine)
    x, first = inputs(layer, tokens=20)
    y, attention, cache, v_first = layer(x, v_first=first)
    assert attention is None and cache is None
    for row in range(2):
        want, values, _, _ = witness(layer, x[row], None if first is None else first[row])
        assert_close(y[row], torch.from_numpy(want), rms=1e-11)
        if layer_idx == 0:
            assert_close(v_first[row], torch.from_numpy(values), rms=1e-12)
    assert layer_idx == 0 or v_first is first


@cases(layer_idx=[0, 1], pieces=[[5, 1, 0, 4, 10], [1] * 20, [20]], grad=[False, True])
def test_cached_pieces_equal_the_equations(layer_idx, pieces, grad):
    layer = build(layer_idx).eval()
    x, first = inputs(layer, tokens=20)
    cache, outputs, start = Cache(), [], 0
    with torch.set_grad_enabled(grad):
        for size in pieces:
            part = slice(start, start + size)
            y, _, same, _ = layer(x[:, part], past_key_values=cache, use_cache=True,
                                  v_first=None if first is None else first[:, part])
            assert same is cache
            outputs.append(y.detach())
            start += size
            assert cache.get_seq_length(layer_idx) == start
    for row in range(2):
        want, _, state, last = witness(layer, x[row], None if first is None else first[row])
        assert_close(torch.cat(outputs, 1)[row], torch.from_numpy(want), rms=1e-11)
        kept = cache[layer_idx]
        assert_close(kept["recurrent_state"][row], torch.from_numpy(np.swapaxes(state, 1, 2).copy()), rms=1e-12)
        assert_close(kept["conv_state"][row], torch.from_numpy(last), rms=0)


@cases(mask=list(MASKS), layer_idx=[0, 1], cached=[False, True], junk=[0.0, float("nan"), float("inf")])
def test_padding_is_invisible(mask, layer_idx, cached, junk):
    """Outputs, cache and gradients of each row are those of its tokens alone, whatever stands in the pads."""
    layer, keep = build(layer_idx), torch.tensor(MASKS[mask])
    x, first = inputs(layer, tokens=10)
    cache = Cache()
    if cached:
        before, before_first = inputs(layer, tokens=4, seed=1)
        with torch.no_grad():
            layer(before, past_key_values=cache, use_cache=True, v_first=before_first)
    alone = [cache.select([row]) if cached else Cache() for row in range(2)]

    def fill(t):
        return None if t is None else torch.where(keep.bool()[..., None], t, torch.full_like(t, junk))

    leaf = fill(x).requires_grad_()
    y, _, _, v_first = layer(leaf, attention_mask=keep, past_key_values=cache, use_cache=True, v_first=fill(first))
    assert not y[~keep.bool()].any() and (layer_idx or not v_first[~keep.bool()].any())
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    grads = torch.autograd.grad((y * weight).sum(), [leaf, layer.x_k, layer.w_lora.lora[2].bias], allow_unused=True)
    total = [torch.zeros_like(p) for p in (layer.x_k, layer.w_lora.lora[2].bias)]
    for row in range(2):
        at = keep[row].bool()
        own = x[row, at].unsqueeze(0).requires_grad_()
        want = layer(own, past_key_values=alone[row], use_cache=True,
                     v_first=None if first is None else first[row, at].unsqueeze(0))[0]
        assert_close(y[row, at], want[0], rms=1e-12)
        if at.any():
            found = torch.autograd.grad((want * weight[row, at]).sum(), [own, layer.x_k, layer.w_lora.lora[2].bias])
            assert_close(grads[0][row, at], found[0][0], rms=1e-11)
            assert not grads[0][row, ~at].any()
            total = [x + y for x, y in zip(total, found[1:])]
        for field in ("recurrent_state", "conv_state"):
            kept, lone = cache[layer_idx][field][row], alone[row][layer_idx][field][0]
            assert_close(kept, lone, rms=1e-12, name=field)
    for got, want in zip(grads[1:], total):
        assert_close(torch.zeros_like(want) if got is None else got, want, rms=1e-11)
    start = 4 if cached else 0
    assert cache.get_seq_length(layer_idx) == start + 10
    assert cache.get_lengths(layer_idx).tolist() == (keep.sum(1) + start).tolist()


@cases(layer_idx=[0, 1], grad=[False, True])
def test_packed_equals_one_by_one(layer_idx, grad):
    layer, cu = build(layer_idx).eval(), [0, 0, 1, 8, 8, 20]
    x, first = inputs(layer, batch=1, tokens=20)
    packed, ones = Cache(), [Cache() for _ in range(5)]
    bounds = list(zip(cu[:-1], cu[1:]))
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            y = layer(x, cu_seqlens=torch.tensor(cu), past_key_values=packed, use_cache=True, v_first=first)[0]
            for (i, j), cache in zip(bounds, ones):
                part = None if first is None else first[:, i:j]
                assert_close(y[:, i:j], layer(x[:, i:j], past_key_values=cache, use_cache=True, v_first=part)[0],
                             rms=1e-12)
    for row, cache in enumerate(ones):
        for field in ("recurrent_state", "conv_state"):
            assert_close(packed[layer_idx][field][row], cache[layer_idx][field][0], rms=1e-12)
    assert packed.get_lengths(layer_idx).tolist() == [2 * (j - i) for i, j in bounds]


def test_explicit_offsets_win_over_the_mask():
    layer = build(0)
    x, _ = inputs(layer, batch=1, tokens=10)
    cu = torch.tensor([0, 4, 10])
    want = layer(x, cu_seqlens=cu)[0]
    assert torch.equal(layer(x, attention_mask=torch.zeros(1, 10), cu_seqlens=cu)[0], want)


@cases(mode=["chunk", "fused_recurrent"], training=[False, True], tokens=[5, 70])
def test_every_mode_gives_the_same(mode, training, tokens):
    layer = build(0, mode=mode).train(training)
    x, _ = inputs(layer, tokens=tokens)
    with torch.no_grad():
        free = layer(x)[0]
    assert_close(free, layer(x)[0], rms=1e-12)


def test_a_cache_that_is_not_to_be_written_is_only_read():
    layer = build(0)
    x, _ = inputs(layer)
    cache = Cache()
    layer(x, past_key_values=cache, use_cache=True)
    state = {name: None if t is None else t.clone() for name, t in cache[0].items()}
    tensors = dict(cache[0])
    y = layer(x, past_key_values=cache, use_cache=False)[0]
    assert cache.get_seq_length(0) == 13 and not torch.allclose(y, layer(x)[0])
    for name, t in state.items():
        assert t is None or (torch.equal(cache[0][name], t) and cache[0][name] is tensors[name])
    layer(x, past_key_values=cache, use_cache=True)
    for name, t in tensors.items():  # what was read before an update is never written
        assert t is None or torch.equal(t, state[name])


@cases(layer_idx=[0, 1], masked=[False, True])
def test_layer_gradients_equal_finite_differences(layer_idx, masked):
    layer = build(layer_idx, hidden=4, heads=2)
    x, first = inputs(layer, tokens=4)
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 1]]) if masked else None
    given = [t.requires_grad_() for t in (x, first) if t is not None]
    assert torch.autograd.gradcheck(
        lambda *t: layer(t[0], attention_mask=mask, v_first=t[1] if len(t) > 1 else None)[0], given)
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def through(*parameters):
        for name, p in zip(names, parameters):
            owner, _, leaf = name.rpartition(".")
            module = layer.get_submodule(owner) if owner else layer
            if leaf in module._parameters:
                del module._parameters[leaf]
            setattr(module, leaf, p)
        return layer(x.detach(), attention_mask=mask, v_first=None if first is None else first.detach())[0]

    assert torch.autograd.gradcheck(through, values, fast_mode=True)


def test_future_rows_and_batch_order_change_nothing():
    layer = build(1)
    x, first = inputs(layer, batch=4, tokens=20)
    y = layer(x, v_first=first)[0]
    other, changed = x.clone(), first.clone()
    other[:, 11:], changed[:, 11:] = 5.0, -3.0
    assert_close(layer(other, v_first=changed)[0][:, :11], y[:, :11], rms=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(layer(x[order], v_first=first[order])[0], y[order], rms=1e-12)
    assert_close(layer(x[2:3], v_first=first[2:3])[0], y[2:3], rms=1e-12)


def test_zero_input_has_finite_gradients():
    for fuse_norm in (False, True):
        layer = build(0, fuse_norm=fuse_norm, dtype=torch.float32)
        x = torch.zeros(1, 6, 24, requires_grad=True)
        layer(x)[0].sum().backward()
        for gradient in [x.grad, *(p.grad for p in layer.parameters())]:
            assert torch.isfinite(gradient).all() and gradient.abs().max() < 1e4

"""Backward passes that go a few tokens at a time: where the blocks end changes nothing."""

import importlib

import torch

import rwkv7_layers
from conv_loop import loop, loop_packed
from myfla.modules import blocks
from myfla.modules.convolution import causal_conv1d
from myfla.modules.fused_norm_gate import layer_norm_gated, rms_norm_gated
from myfla.modules.layernorm import group_norm
from myfla.ops._delta.chunk import plan
from myfla.ops._delta.recurrent import loop as token_loop
from myfla.testing import assert_close, cases
from state_subjects import EVERY, op_state

fused_addcmul = importlib.import_module("myfla.ops.rwkv7.fused_addcmul")

D = 6


def grads(outputs, leaves):
    draw = torch.Generator().manual_seed(1)
    total = sum((y * torch.randn(y.shape, generator=draw, dtype=y.dtype)).sum() for y in outputs)
    return torch.autograd.grad(total, leaves)


@cases(batch=[1, 2, 5], tokens=[0, 1, 7, 20], channels=[1, 6], size=[1, 12, 50, 1000])
def test_every_token_is_in_one_block_and_the_last_come_first(batch, tokens, channels, size, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", size)
    seen, ends = torch.zeros(batch, tokens, dtype=torch.int64), {}
    for rows, start, end in blocks.blocks(batch, tokens, channels, torch.device("cpu")):
        seen[rows, start:end] += 1
        assert start < end == ends.get(rows.start, tokens), "the blocks of some rows follow each other"
        ends[rows.start] = start
    assert (seen == 1).all()


@cases(T=[2, 9, 33], W=[2, 4], size=[1, 2 * D, 5 * D, 40 * D], activation=[None, "silu"], cu=[False, True])
def test_convolution_gradients_equal_the_token_loop_in_blocks_of_any_size(T, W, size, activation, cu, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", size)
    cut = [0, T // 3, T // 3, T] if cu else None
    rows = 1 if cu else 2
    made = {"x": (rows, T, D), "weight": (D, W), "bias": (D,), "residual": (rows, T, D),
            "initial_state": (3 if cu else rows, D, W)}
    given = {name: torch.randn(*shape, dtype=torch.float64, requires_grad=True) for name, shape in made.items()}
    offsets = None if cut is None else torch.tensor(cut)
    got = causal_conv1d(**given, output_final_state=True, activation=activation, cu_seqlens=offsets)
    x, w, b, r, s = given.values()
    if cu:
        y, final = loop_packed(x[0], cut, w, b, r[0], s, activation)
        want = y[None], final
    else:
        want = [torch.stack(parts) for parts in zip(*(loop(x[i], w, b, r[i], s[i], activation) for i in range(rows)))]
    for name, a, b in zip(given, grads(got, list(given.values())), grads(want, list(given.values()))):
        assert_close(a, b, rms=1e-12, name=name)


NORMS = {"plain": lambda g, kept: group_norm(*kept, num_groups=1, is_rms_norm=True),
         "groups": lambda g, kept: group_norm(*kept, num_groups=3, is_rms_norm=False),
         "rms gated": lambda g, kept: rms_norm_gated(kept[0], g, *kept[1:], "silu"),
         "layer gated": lambda g, kept: layer_norm_gated(kept[0], g, *kept[1:], "sigmoid")}


@cases(norm=list(NORMS), size=[1, 4 * D, 12 * D, 60 * D])
def test_norm_gradients_are_the_same_in_blocks_of_any_size(norm, size, monkeypatch):
    x, g = (torch.randn(3, 7, D, dtype=torch.float64, requires_grad=True) for _ in "xg")
    parameters = [torch.randn(D, dtype=torch.float64, requires_grad=True) for _ in "wb"]
    leaves = [x, *parameters, *([g] if "gated" in norm else [])]
    want = grads([NORMS[norm](g, (x, *parameters))], leaves)
    monkeypatch.setattr(blocks, "CPU_BLOCK", size)
    for a, b in zip(grads([NORMS[norm](g, (x, *parameters))], leaves), want):
        assert_close(a, b, rms=1e-13)


@cases(op=list(EVERY), size=[1, 700, 5000], cu=[False, True])
def test_ops_are_the_same_in_blocks_of_any_size(op, size, cu, monkeypatch):
    """How much is worked on together: chunks, heads, states, tokens of the recurrent forms. Values and gradients."""
    rows = 1 if cu else 3
    given = {name: t.requires_grad_() for name, t in EVERY[op].inputs(rows, 70, torch.float64).items()}
    offsets = torch.tensor([0, 1, 1, 40, 70]) if cu else None
    state = op_state(op, 4 if cu else rows, torch.float64).requires_grad_()
    leaves = [*given.values(), state]
    outputs = EVERY[op](given, state, offsets)
    want = [*outputs, *grads(outputs, leaves)]
    for module, name in ((plan, "CPU_BLOCK"), (plan, "CPU_STATES"), (token_loop, "STEP_BLOCK"),
                         (token_loop, "SEGMENT")):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(token_loop, "STEP_WHOLE", 0)
    outputs = EVERY[op](given, state, offsets)
    with torch.no_grad():
        alone = EVERY[op](given, state, offsets)
    for a, b in zip([*outputs, *grads(outputs, leaves), *alone], [*want, *want[:2]]):
        assert_close(a, b, rms=1e-11)


@cases(size=[1, 30, 200])
def test_layers_are_the_same_in_blocks_of_any_size(size, monkeypatch):
    """Mixtures of the token shift, row by row; and everything below."""
    layer = rwkv7_layers.build(0)
    x = torch.randn(2, 11, 24, dtype=torch.float64, requires_grad=True)
    want = grads([layer(x)[0]], [x, *layer.parameters()][:9])
    for module, name in ((fused_addcmul, "BLOCK"), (blocks, "CPU_BLOCK"), (plan, "CPU_BLOCK")):
        monkeypatch.setattr(module, name, size)
    for a, b in zip(grads([layer(x)[0]], [x, *layer.parameters()][:9]), want):
        assert_close(a, b, rms=1e-11)

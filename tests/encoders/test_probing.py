"""The probe reports the gates that a layer computes with, for tokens only."""

import contextlib

import torch

from encoders import build_encoder
from encoders.probing import probe
from myfla.layers import GatedDeltaNet, RWKV7Attention, rwkv7_core
from myfla.testing import cases
from tiny_encoder import TinyConfig, TinyStrategy

LENGTHS = [7, 3, 1, 5]


def small(name, **more):
    torch.manual_seed(1)
    encoder = build_encoder({"name": name, "input_size": 4, "hidden_size": 12, "num_layers": 2, **more},
                            dtype=torch.float64)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # a fresh RWKV-7 adds nothing to the stream
    return encoder


@cases(neg=[False, True])
def test_gates_of_gated_deltanet_are_those_of_its_formula(neg):
    layer = GatedDeltaNet(hidden_size=12, head_dim=4, num_heads=2, num_v_heads=4, allow_neg_eigval=neg).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    g, beta = layer.gates(x)
    for n in range(2):
        for t in range(5):
            for h in range(4):
                a = layer.a_proj.weight[h] @ x[n, t] + layer.dt_bias[h]
                want = -layer.A_log[h].exp() * torch.log1p(a.exp())
                assert abs(float((g[n, t, h] - want).detach())) < 1e-12
                share = 1 / (1 + (-(layer.b_proj.weight[h] @ x[n, t])).exp())
                assert abs(float((beta[n, t, h] - (2 if neg else 1) * share).detach())) < 1e-12


@cases(packed=[False, True])
def test_gates_of_rwkv7_are_what_its_recurrence_is_given(packed, monkeypatch):
    layer = RWKV7Attention(hidden_size=12, head_dim=4, layer_idx=0, num_hidden_layers=1).double()
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    offsets = torch.tensor([0, 4, 10]) if packed else None
    given = {}
    op = rwkv7_core.chunk_rwkv7

    def watch(r, w, k, v, a, b, **more):
        given.update(w=w, rate=-b / a)  # the recurrence gets -kk and kk a
        return op(r, w, k, v, a, b, **more)

    monkeypatch.setattr(rwkv7_core, "chunk_rwkv7", watch)
    layer(x, cu_seqlens=offsets)
    w, a = layer.gates(x, offsets)
    torch.testing.assert_close(w, given["w"], rtol=1e-12, atol=0)
    torch.testing.assert_close(a, given["rate"], rtol=1e-9, atol=0)


@cases(name=["gated_deltanet", "rwkv7"], direction=["causal", "bidirectional"])
def test_a_batch_says_what_its_sequences_say_alone(name, direction):
    encoder = small(name, direction=direction).train()
    x = torch.randn(len(LENGTHS), max(LENGTHS), 4, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        x[row, length:] = float("nan")
    together = probe(encoder, x, lengths=LENGTHS)
    alone = [probe(encoder, x[row : row + 1, :length]) for row, length in enumerate(LENGTHS)]
    assert [(found.layer, found.backward) for found in together] == [
        (i, back) for back in ([False, True] if direction == "bidirectional" else [False]) for i in range(2)]
    for place, found in enumerate(together):
        for part in ("log_decay", "strength"):
            want = torch.cat([getattr(one[place].gates, part) for one in alone])
            torch.testing.assert_close(getattr(found.gates, part), want, rtol=1e-9, atol=1e-12)
        assert bool((found.gates.log_decay <= 0).all()) and found.gates.strength_name in ("beta", "a")
    assert encoder.training and not any(module._forward_pre_hooks for module in encoder.modules())


def test_heads_and_channels_are_those_of_the_layer():
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    gdn = probe(small("gated_deltanet", num_heads=2, num_v_heads=4, allow_neg_eigval=True), x)
    assert gdn[0].gates.log_decay.shape == (6, 4, 1) and gdn[0].gates.strongest == 2.0
    rwkv = probe(small("rwkv7", head_dim=4), x)
    assert rwkv[1].gates.strength.shape == (6, 3, 4) and rwkv[1].gates.strongest == 1.0


def test_a_failing_call_leaves_no_hooks():
    encoder = small("rwkv7")
    with contextlib.suppress(ValueError):
        probe(encoder, torch.randn(1, 6, 5, dtype=torch.float64))
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_strategies_that_do_not_tell_are_left_out():
    encoder = TinyStrategy().build(TinyConfig(input_size=4))
    assert probe(encoder, torch.randn(1, 6, 4)) == []
    assert TinyStrategy().gates(encoder.blocks[0].mixer, torch.randn(1, 6, 6)) is None

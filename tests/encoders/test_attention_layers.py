"""Encoders in which some layers are softmax attention (``encoder.attn``) have the same properties as the others."""

import torch

from myfla.layers import Attention, GatedDeltaNet
from myfla.testing import assert_close, cases
from small_encoders import small

TIGHT = 1e-10  # float64 throughout
KINDS = {
    "last": dict(layers=[1], num_heads=4, num_kv_heads=2),
    "first, in a window": dict(layers=[0], num_heads=2, qkv_bias=True, window_size=3),
    "all": dict(layers=[0, 1], num_heads=4),
}


def hybrid(kind, direction="causal"):
    return small("gated_deltanet", attn=KINDS[kind], direction=direction)


def data(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@cases(kind=list(KINDS), direction=["causal", "bidirectional"])
def test_the_layers_named_are_attention_with_these_settings_and_no_others(kind, direction):
    encoder, settings = hybrid(kind, direction), KINDS[kind]
    for blocks in (encoder.blocks, encoder.backward_blocks) if direction == "bidirectional" else (encoder.blocks,):
        for i, block in enumerate(blocks):
            assert type(block.mixer) is (Attention if i in settings["layers"] else GatedDeltaNet)
            if type(block.mixer) is Attention:
                assert block.mixer.layer_idx == i and block.mixer.num_heads == settings["num_heads"]
                assert block.mixer.num_kv_heads == settings.get("num_kv_heads", settings["num_heads"])
                assert block.mixer.window_size == settings.get("window_size")
                assert (block.mixer.q_proj.bias is not None) == settings.get("qkv_bias", False)


@cases(kind=list(KINDS), cuts=[[1], [3, 4], [0, 5, 5], list(range(9))])
def test_any_split_equals_the_whole(kind, cuts):
    encoder, x = hybrid(kind), data(2, 9, 3)
    cache, parts = None, []
    with torch.no_grad():
        whole = encoder(x).hidden
        for start, end in zip([0, *cuts], [*cuts, 9]):
            out = encoder(x[:, start:end], cache=cache, use_cache=True)
            cache = out.cache
            parts.append(out.hidden)
    assert_close(torch.cat(parts, 1), whole, rms=TIGHT)


@cases(kind=list(KINDS), direction=["causal", "bidirectional"], side=["left", "right"])
def test_pads_of_nan_change_neither_outputs_nor_gradients(kind, direction, side):
    encoder, x = hybrid(kind, direction), data(2, 9, 3)
    span = slice(4, 9) if side == "left" else slice(0, 5)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1] = False
    mask[1, span] = True
    alone = encoder(x[1:, span])
    want = torch.autograd.grad(alone.embedding.sum(), list(encoder.parameters()), allow_unused=True)
    padded = encoder(x.masked_fill(~mask.unsqueeze(-1), float("nan")), attention_mask=mask)
    got = torch.autograd.grad(padded.embedding[1].sum(), list(encoder.parameters()), allow_unused=True)
    assert_close(padded.hidden[1:, span], alone.hidden, rms=TIGHT)
    assert_close(padded.embedding[1:], alone.embedding, rms=TIGHT)
    for a, b in zip(got, want):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, rms=1e-9)


@cases(kind=list(KINDS), direction=["causal", "bidirectional"])
def test_packed_sequences_equal_each_alone(kind, direction):
    encoder, x, cu = hybrid(kind, direction), data(1, 11, 3), torch.tensor([0, 4, 5, 11])
    with torch.no_grad():
        packed = encoder(x, cu_seqlens=cu)
        for n, (start, end) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist())):
            alone = encoder(x[:, start:end])
            assert_close(packed.hidden[:, start:end], alone.hidden, rms=TIGHT)
            assert_close(packed.embedding[n : n + 1], alone.embedding, rms=TIGHT)


@cases(kind=list(KINDS), direction=["causal", "bidirectional"])
def test_every_parameter_learns(kind, direction):
    encoder = hybrid(kind, direction).train()
    (encoder(data(2, 7, 3), lengths=[7, 4]).embedding * data(2, 8)).sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]

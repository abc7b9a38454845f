"""The GatedDeltaNet layer against a float64 loop over tokens, with masks, packing, caches and every flag.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/test_gated_deltanet.py``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(ROOT / "libs"))
sys.path.insert(0, str(ROOT / "tests" / "support"))

import torch  # noqa: E402

import layer_truth  # noqa: E402
from gdn_layer import SHAPES, D, build, inputs, run, tensors  # noqa: E402
from myfla.layers import gated_deltanet as module  # noqa: E402
from myfla.layers.gated_deltanet import elu_p1, sum_norm  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import assert_close, cases, raises, run_as_script  # noqa: E402
from myfla.utils.errors import CacheError  # noqa: E402


def check_grads(layer, x, y, parameters, leaf, want, weight, rms):
    """Gradients of ``(y * weight).sum()`` equal those of the loop, for the input and for every parameter."""
    found = torch.autograd.grad((y * weight.to(y.dtype)).sum(), [x, *layer.parameters()])
    truth = torch.autograd.grad((want * weight).sum(), [leaf, *parameters.values()])
    for name, got, true in zip(["x", *parameters], found, truth):
        loose = 10 if name in ("A_log", "dt_bias") else 1
        assert_close(got, true, rms=rms * loose, name=f"gradient of {name}")
        assert got.dtype == (x if name == "x" else dict(layer.named_parameters())[name]).dtype


@cases(use_gate=[True, False], use_short_conv=[True, False], allow_neg_eigval=[True, False],
       mode=["chunk", "fused_recurrent"])
def test_every_flag_combination_equals_the_token_loop(use_gate, use_short_conv, allow_neg_eigval, mode):
    layer = build(use_gate=use_gate, use_short_conv=use_short_conv, allow_neg_eigval=allow_neg_eigval, mode=mode)
    x, leaf = inputs(2, 11).requires_grad_(), inputs(2, 11).requires_grad_()
    parameters = layer_truth.parameters_of(layer)
    want = layer_truth.batch(layer, parameters, leaf)
    y = run(layer, x, grad=True)
    assert_close(y, want, rms=1e-13)
    check_grads(layer, x, y, parameters, leaf, want, torch.randn_like(want), 1e-11)
    for train in (True, False):
        assert_close(run(layer.train(train), x), want, rms=1e-13)


@cases(shape=list(SHAPES), dtype=[torch.float64, torch.float32])
def test_every_shape_equals_the_token_loop(shape, dtype):
    layer = build(dtype, **SHAPES[shape])
    x, leaf = inputs(2, 70, dtype).requires_grad_(), inputs(2, 70, dtype).double().requires_grad_()
    parameters = layer_truth.parameters_of(layer)
    want = layer_truth.batch(layer, parameters, leaf)
    y = run(layer, x, grad=True)
    value, grad = (1e-12, 1e-10) if dtype == torch.float64 else (2e-6, 1e-5)
    assert_close(y, want, rms=value)
    check_grads(layer, x, y, parameters, leaf, want, torch.randn_like(want), grad)
    assert_close(run(layer.eval(), x[:, :20]), want[:, :20], rms=value)


@cases(dtype=[torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_token_loop(dtype):
    layer = build(dtype)
    x = inputs(2, 40, dtype)
    want = layer_truth.batch(layer, layer_truth.parameters_of(layer), x)
    cache = Cache()
    y = run(layer.eval(), x, cache)
    assert y.dtype == dtype and cache[0]["recurrent_state"].dtype == torch.float32
    assert {t.dtype for t in cache[0]["conv_state"]} == {dtype}
    assert_close(y, want, rms=2e-2 if dtype == torch.bfloat16 else 3e-3)


def test_gradcheck_in_float64():
    flags = {"num_v_heads": 2, "num_heads": 1, "head_dim": 2, "hidden_size": 3, "conv_bias": True, "conv_size": 2}
    layer = build(allow_neg_eigval=True, **flags)
    names = [name for name, _ in layer.named_parameters()]
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]])

    def function(x, *values):
        for name, value in zip(names, values):
            owner, _, leaf = name.rpartition(".")
            owner = layer.get_submodule(owner) if owner else layer
            owner._parameters.pop(leaf, None)
            setattr(owner, leaf, value)
        return layer(x, attention_mask=mask)[0]

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *values))


MASKS = {
    "left": [[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1], [1] * 9],
    "right": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0], [1] * 9],
    "inner": [[1, 0, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1, 1, 1, 1]],
    "empty_rows": [[0] * 9, [1, 1, 0, 0, 0, 0, 0, 0, 1], [0] * 9],
    "nothing": [[0] * 9] * 3,
}


@cases(mask=list(MASKS), garbage=[0.0, float("nan"), float("inf")], use_short_conv=[True, False])
def test_padding_is_invisible(mask, garbage, use_short_conv):
    layer = build(use_short_conv=use_short_conv)
    real = torch.tensor(MASKS[mask])
    clean, weight = inputs(3, 9), inputs(3, 9, seed=2)
    x = clean.masked_fill(real.unsqueeze(-1) == 0, garbage).requires_grad_()
    leaf = clean.clone().requires_grad_()
    parameters = layer_truth.parameters_of(layer)
    y = run(layer, x, grad=True, attention_mask=real)
    want = torch.zeros(3, 9, D, dtype=torch.float64)
    cache = Cache()
    assert torch.equal(run(layer.eval(), x, cache, attention_mask=real) == 0, y == 0)
    for row in range(3):
        at = real[row].nonzero().flatten()
        out, state, history = layer_truth.gated_deltanet(layer, parameters, leaf[row, at])
        want = want.index_put((torch.tensor(row), at), out)
        for kept, true in zip(tensors(cache[0]), [state, *(history if use_short_conv else ())]):
            true = torch.zeros_like(kept[row]) if true is None else true
            assert_close(kept[row], true, rms=1e-12, name=f"state of row {row}")
    assert_close(y, want, rms=1e-12)
    assert cache.lengths.tolist() == real.sum(1).tolist() and cache.get_seq_length() == 9
    truth = torch.autograd.grad((want * weight).sum() + 0 * leaf.sum(), [leaf, *parameters.values()], allow_unused=True)
    found = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])
    for got, true in zip(found, truth):
        assert_close(got, torch.zeros_like(got) if true is None else true, rms=1e-10)


@cases(kind=[torch.int64, torch.int32, torch.bool, torch.float32])
def test_a_mask_of_any_number_format_and_length_is_obeyed(kind):
    layer = build()
    mask = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 1, 1, 0]])
    x = inputs(2, 3)
    want = run(layer, x, attention_mask=mask[:, 2:])
    assert torch.equal(run(layer, x, attention_mask=mask.to(kind)), want)
    edited = torch.ones_like(mask)
    assert not torch.equal(run(layer, x, attention_mask=edited), want)
    edited.copy_(mask)
    assert torch.equal(run(layer, x, attention_mask=edited), want)


@cases(lengths=[[5, 1, 84, 10], [0, 3, 0, 0, 1, 7, 0], [1, 1, 1], [0, 0]], grad=[True, False])
def test_packed_equals_one_by_one(lengths, grad):
    layer = build(conv_bias=True).train(grad)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    x = inputs(1, sum(lengths))
    first, alone = Cache(), [Cache() for _ in lengths]
    start = inputs(1, 2 * len(lengths), seed=3)
    run(layer, start, first, cu_seqlens=torch.arange(0, 2 * len(lengths) + 1, 2))
    y = run(layer, x, first, grad=grad, cu_seqlens=cu, attention_mask=torch.zeros(1, sum(lengths)))
    for n, cache in enumerate(alone):
        run(layer, start[:, 2 * n : 2 * n + 2], cache)
        piece = slice(int(cu[n]), int(cu[n + 1]))
        assert_close(y[:, piece], run(layer, x[:, piece], cache), rms=1e-12, name=f"sequence {n}")
        for a, b in zip(tensors(first[0]), tensors(cache[0])):
            assert_close(a[n], b[0], rms=1e-12, name=f"state of sequence {n}")
    assert first.lengths.tolist() == [2 + n for n in lengths]
    assert first.get_seq_length() == 2 * len(lengths) + sum(lengths)


@cases(shape=["plain", "grouped", "bias", "sigmoid"], use_short_conv=[True, False], grad=[True, False])
def test_any_split_equals_the_whole(shape, use_short_conv, grad):
    layer = build(use_short_conv=use_short_conv, **SHAPES[shape]).eval()
    x = inputs(2, 90)
    parameters = layer_truth.parameters_of(layer)
    want = layer_truth.batch(layer, parameters, x)
    for cuts in ([0, 90], [0, 70, 71, 72, 73, 90], [0, 0, 1, 1, 2, 66, 66, 90, 90]):
        cache = Cache()
        pieces = [run(layer, x[:, i:j], cache, grad=grad) for i, j in zip(cuts[:-1], cuts[1:])]
        assert_close(torch.cat(pieces, 1), want, rms=1e-12, name=str(cuts))
        assert cache.get_seq_length() == 90 and cache.lengths.tolist() == [90, 90]
        for row in range(2):
            _, state, history = layer_truth.gated_deltanet(layer, parameters, x[row])
            for kept, true in zip(tensors(cache[0]), [state, *history]):
                assert_close(kept[row], true, rms=1e-12, name=str(cuts))


@cases(tokens=[0, 1], grad=[True, False])
def test_no_token_and_one_token_work(tokens, grad):
    layer = build()
    x = inputs(2, tokens).requires_grad_(grad)
    cache = Cache()
    y = run(layer, x, cache, grad=grad)
    assert y.shape == (2, tokens, D) and cache.get_seq_length() == tokens
    before = [t.clone() for t in tensors(cache[0])]
    empty = run(layer, x[:, :0], cache, grad=grad)
    assert empty.shape == (2, 0, D) and all(torch.equal(a, b) for a, b in zip(tensors(cache[0]), before))
    assert cache[0]["recurrent_state"].shape == (2, 2, 4, 8) and cache.get_seq_length() == tokens
    if grad:
        y.sum().backward()
        assert x.grad.shape == x.shape
    assert run(layer, inputs(0, 3)).shape == (0, 3, D)


@cases(shape=["plain", "grouped", "bias"], use_short_conv=[True, False])
def test_a_cache_holds_what_the_protocol_says(shape, use_short_conv):
    layer = build(torch.float32, layer_idx=1, use_short_conv=use_short_conv, **SHAPES[shape]).eval()
    cache = Cache()
    with torch.no_grad():
        y, attentions, same = layer(inputs(3, 6, torch.float32), None, cache, True, False)
    assert attentions is None and same is cache and y.shape == (3, 6, D)
    assert len(cache) == 2 and cache[0] is None and cache.get_seq_length(1) == 6 and cache.get_seq_length(0) == 0
    assert set(cache[1]) == {"recurrent_state", "attn_state", "conv_state", "ffn_state"}
    state, conv = cache[1]["recurrent_state"], cache[1]["conv_state"]
    assert state.shape == (3, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim) and state.dtype == torch.float32
    if use_short_conv:
        sizes = [(3, size, layer.conv_size) for size in (layer.key_dim, layer.key_dim, layer.value_dim)]
        assert isinstance(conv, tuple) and [tuple(t.shape) for t in conv] == sizes
    else:
        assert conv is None


@cases(neg=[True, False])
def test_beta_lies_in_its_range(neg):
    """After one token from nothing the state is ``k (beta v)^T``, so beta can be read off its norm."""
    layer = build(allow_neg_eigval=neg, use_short_conv=False, seed=3).eval()
    with torch.no_grad():
        layer.b_proj.weight.mul_(20)
    x = inputs(64, 1)
    cache = Cache()
    run(layer, x, cache)
    v = torch.nn.functional.silu(layer.v_proj(x)).view(64, 2, 8).norm(dim=-1)
    k = torch.nn.functional.silu(layer.k_proj(x)).view(64, 2, 4)
    k = k.norm(dim=-1) / (k.square().sum(-1) + 1e-6).sqrt()
    beta = cache[0]["recurrent_state"].flatten(2).norm(dim=-1) / (v * k)
    limit = 2.0 if neg else 1.0
    assert 0 < beta.min() < 0.1 * limit and 0.9 * limit < beta.max() < limit * (1 + 1e-12)
    assert_close(beta, limit * torch.sigmoid(layer.b_proj(x))[:, 0].detach(), rms=1e-10)


def test_the_form_follows_the_mode_rules():
    calls = []
    names = {"chunk_gated_delta_rule": "chunk", "fused_recurrent_gated_delta_rule": "recurrent"}
    real = {name: getattr(module, name) for name in names}
    try:
        for name, short in names.items():
            setattr(module, name, lambda _name=name, _short=short, **kw: calls.append(_short) or real[_name](**kw))
        for mode in ("chunk", "fused_recurrent"):
            layer = build(mode=mode)
            long = "chunk" if mode == "chunk" else "recurrent"
            for train, grad, tokens, want in (
                (True, True, 3, "chunk"), (True, False, 3, "chunk"), (True, False, 65, "chunk"),
                (False, True, 3, "chunk"), (False, True, 65, "chunk"),
                (False, False, 64, "recurrent"), (False, False, 65, long),
            ):  # fmt: skip
                run(layer.train(train), inputs(1, tokens), grad=grad)
                assert calls.pop() == want and not calls, (mode, train, grad, tokens)
    finally:
        for name in names:
            setattr(module, name, real[name])


@cases(dtype=[torch.float32, torch.float64, torch.bfloat16])
def test_feature_maps(dtype):
    x = torch.tensor([[-30.0, -1.0, 0.0, 2.0]], dtype=dtype)
    want = torch.where(x > 0, x.double() + 1, x.double().exp())
    assert elu_p1(x).dtype == sum_norm(x).dtype == dtype
    rms = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    assert_close(elu_p1(x), want, rms=rms)
    assert_close(sum_norm(elu_p1(x)), want / want.sum(-1, keepdim=True), rms=rms)
    y = torch.rand(3, 4, requires_grad=True)
    sum_norm(elu_p1(y)).square().sum().backward()
    assert torch.isfinite(y.grad).all()


def test_the_cache_of_another_batch_is_refused():
    layer, cache = build().eval(), Cache()
    run(layer, inputs(2, 3), cache)
    with raises(CacheError, "GatedDeltaNet: recurrent_state batch", "must be 3", "got 2"):
        run(layer, inputs(3, 1), cache)


if __name__ == "__main__":
    run_as_script(globals())

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

import warnings  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402

import torch  # noqa: E402

import layer_truth  # noqa: E402
from myfla.layers import gated_deltanet as module  # noqa: E402
from myfla.layers.gated_deltanet import GatedDeltaNet, elu_p1, sum_norm  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import assert_close, cases, raises, run_as_script  # noqa: E402
from myfla.utils.errors import CacheError  # noqa: E402

D = 12
SHAPES = {
    "plain": {},
    "grouped": {"num_v_heads": 4, "expand_v": 1.5},
    "bias": {"conv_bias": True, "conv_size": 3, "expand_v": 1},
    "sigmoid": {"output_gate_activation": "sigmoid", "conv_size": 1},
    "one_head": {"num_heads": 1, "head_dim": 6, "expand_v": 0.5, "norm_eps": 1e-3},
}


def build(dtype=torch.float64, seed=0, **flags):
    """A small layer whose every parameter differs from its initial value."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = GatedDeltaNet(**{**dict(hidden_size=D, head_dim=4, num_heads=2, layer_idx=0, dtype=dtype), **flags})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return layer


def inputs(batch, tokens, dtype=torch.float64, seed=1):
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(layer, x, cache=None, grad=False, **kwargs):
    """Output of a call, with the cache kept if there is one."""
    with torch.set_grad_enabled(grad):
        return layer(x, past_key_values=cache, use_cache=cache is not None, **kwargs)[0]


def tensors(state):
    return [state["recurrent_state"], *(state["conv_state"] or ())]


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


def test_continued_calls_with_padding_equal_the_whole():
    layer = build().eval()
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1, 0, 1], [1, 0, 1, 0, 0, 0, 0, 1, 1, 1], [0] * 10])
    x = inputs(3, 10).masked_fill(mask.unsqueeze(-1) == 0, float("nan"))
    whole, pieces = Cache(), Cache()
    want = run(layer, x, whole, attention_mask=mask)
    cuts = ((0, 2), (2, 3), (3, 8), (8, 9), (9, 10))
    got = [run(layer, x[:, i:j], pieces, attention_mask=mask[:, :j]) for i, j in cuts]
    assert_close(torch.cat(got, 1), want, rms=1e-12)
    for a, b in zip(tensors(pieces[0]), tensors(whole[0])):
        assert_close(a, b, rms=1e-12)
    assert pieces.lengths.tolist() == mask.sum(1).tolist() and pieces.get_seq_length() == 10


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


def test_offsets_edited_in_place_are_obeyed():
    layer, x = build(), inputs(1, 8)
    cu = torch.tensor([0, 3, 8])
    first = run(layer, x, cu_seqlens=cu)
    cu.copy_(torch.tensor([0, 5, 8]))
    assert torch.equal(run(layer, x, cu_seqlens=cu), run(layer, x, cu_seqlens=torch.tensor([0, 5, 8])))
    assert not torch.equal(run(layer, x, cu_seqlens=cu), first)


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


def test_gradients_flow_through_a_cache():
    layer = build()
    x = inputs(2, 12).requires_grad_()
    cache = Cache()
    pieces = [run(layer, x[:, i:j], cache, grad=True) for i, j in ((0, 5), (5, 6), (6, 12))]
    got = torch.autograd.grad(torch.cat(pieces, 1).square().sum(), [x, *layer.parameters()])
    want = torch.autograd.grad(run(layer, x, grad=True).square().sum(), [x, *layer.parameters()])
    for a, b in zip(got, want):
        assert_close(a, b, rms=1e-11)


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


@cases(use_short_conv=[True, False])
def test_a_cache_without_use_cache_is_read_and_left_alone(use_short_conv):
    layer = build(use_short_conv=use_short_conv).eval()
    cache = Cache()
    x = inputs(2, 8)
    run(layer, x[:, :5], cache)
    state, kept = cache[0], [t.clone() for t in tensors(cache[0])]
    with torch.no_grad():
        first = layer(x[:, 5:], past_key_values=cache)[0]
        second, _, same = layer(x[:, 5:], past_key_values=cache, use_cache=None)
    assert same is cache and cache[0] is state and all(torch.equal(a, b) for a, b in zip(tensors(state), kept))
    assert cache.get_seq_length() == 5 and torch.equal(first, second)
    assert torch.equal(run(layer, x[:, 5:], cache), first)
    assert layer(x, use_cache=True)[2] is None


def test_no_tensor_of_a_cache_is_ever_written():
    layer = build().eval()
    cache, x = Cache(), inputs(2, 20)
    forks = []
    for i, j in ((0, 3), (3, 4), (4, 5), (5, 20)):
        run(layer, x[:, i:j], cache)
        forks.append((cache.fork(), [t.clone() for t in tensors(cache[0])]))
    for fork, copies in forks:
        assert all(torch.equal(a, b) for a, b in zip(tensors(fork[0]), copies))
    again = cache.fork().rollback(forks[1][0])
    assert torch.equal(run(layer, x[:, 4:5], again), run(layer, x[:, 4:5], forks[1][0].fork()))


def test_interleaved_sessions_equal_lone_ones():
    layer = build().eval()
    x = [inputs(1, 12, seed=seed) for seed in (5, 6)]
    alone, mixed = [Cache(), Cache()], [Cache(), Cache()]
    cuts = list(zip((0, 4, 5, 6), (4, 5, 6, 12)))
    want = [[run(layer, x[s][:, i:j], alone[s]) for i, j in cuts] for s in (0, 1)]
    got = [[run(layer, x[s][:, i:j], mixed[s]) for s in (0, 1)] for i, j in cuts]
    assert all(torch.equal(want[s][c], got[c][s]) for s in (0, 1) for c in range(len(cuts)))


@cases(grad=[True, False])
def test_threads_on_one_layer_do_not_see_each_other(grad):
    layer = build(torch.float32).train(grad)
    x = [inputs(2, tokens, torch.float32, seed=tokens) for tokens in (70, 71, 9, 10)]

    def work(i):
        torch.set_num_threads(1)  # older PyTorch splits a sum differently in a thread that is not the first
        cache, out = Cache(), []
        for _ in range(6):
            leaf = x[i].clone().requires_grad_(grad)
            y = run(layer, leaf, cache, grad=grad)
            out.append(torch.autograd.grad(y.square().sum(), leaf)[0] if grad else y)
            cache = cache.detach()
        return out

    threads = torch.get_num_threads()
    try:
        alone = [work(i) for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(work, range(4)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for one, two in zip(alone, together) for a, b in zip(one, two))


def test_stacked_sessions_equal_lone_ones():
    layer = build().eval()
    sessions = [Cache(), Cache(), Cache()]
    for length, cache in zip((4, 1), sessions):
        run(layer, inputs(1, length, seed=length), cache)
    step = inputs(3, 2, seed=9)
    together = Cache.stack(sessions)
    y = run(layer, step, together)
    for i, (cache, after) in enumerate(zip(sessions, together.unstack())):
        assert_close(y[i : i + 1], run(layer, step[i : i + 1], cache), rms=1e-12)
        assert after.lengths.tolist() == cache.lengths.tolist() and after.get_seq_length() == cache.get_seq_length()
        for a, b in zip(tensors(after[0]), tensors(cache[0])):
            assert_close(a, b, rms=1e-12)


def test_the_future_changes_nothing_and_the_batch_order_only_the_order():
    layer = build(torch.float32).eval()
    x = inputs(4, 70, torch.float32)
    changed = x.clone()
    changed[:, 40:] = 7.0
    order = torch.tensor([2, 0, 3, 1])
    for tokens in (50, 70):
        y = run(layer, x[:, :tokens])
        assert_close(run(layer, changed[:, :tokens])[:, :40], y[:, :40], rms=1e-12)
        assert_close(run(layer, x[order, :tokens]), y[order], rms=2e-6)


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


@cases(shape=["plain", "bias"], packed=[True, False])
def test_one_convolution_for_all_equals_three(shape, packed):
    layer = build(torch.float32, **SHAPES[shape])
    x = inputs(1, 30, torch.float32).requires_grad_()
    cu = torch.tensor([0, 4, 4, 5, 30]) if packed else None
    cache = Cache()
    run(layer, x, cache, cu_seqlens=cu)
    results = []
    for hook in (layer._use_fused_qkv_conv, lambda *args: False):
        layer._use_fused_qkv_conv = hook
        going_on = cache.fork()
        y = run(layer, x, going_on, grad=True, cu_seqlens=cu)
        results.append((y, tensors(going_on[0]), torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    (y, states, grads), (y3, states3, grads3) = results
    for a, b in zip((y, *states, *grads), (y3, *states3, *grads3)):
        assert_close(a, b, rms=1e-6)


def test_a_hook_on_a_convolution_is_called():
    layer, seen = build(), []
    layer.k_conv1d.register_forward_hook(lambda *args: seen.append(1))
    run(layer, inputs(1, 4))
    assert seen == [1]


@cases(use_gate=[True, False], use_short_conv=[True, False], train=[True, False])
def test_every_parameter_gets_a_gradient(use_gate, use_short_conv, train):
    layer = build(torch.float32, use_gate=use_gate, use_short_conv=use_short_conv, conv_bias=True).train(train)
    layer(inputs(2, 5, torch.float32))[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_autocast_runs_and_stays_near():
    layer = build(torch.float32).eval()
    x = inputs(2, 9, torch.float32)
    want = run(layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = Cache()
        y = torch.cat([run(layer, x[:, :6], cache), run(layer, x[:, 6:], cache)], 1)
        z = run(layer, x, grad=True)
    assert cache[0]["recurrent_state"].dtype == torch.float32
    assert_close(y.float(), want, rms=3e-2)
    assert_close(z.float(), want, rms=3e-2)


def test_a_state_seeded_by_hand_starts_the_recurrence():
    layer = build().eval()
    cache, state = Cache(), torch.randn(2, 2, 4, 8, dtype=torch.float64)
    cache.update(recurrent_state=state, layer_idx=0, offset=0)
    x = inputs(2, 5)
    y = run(layer, x, cache)
    parameters = layer_truth.parameters_of(layer)
    want = torch.stack([layer_truth.gated_deltanet(layer, parameters, x[i], state[i])[0] for i in range(2)])
    assert_close(y, want, rms=1e-12)


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

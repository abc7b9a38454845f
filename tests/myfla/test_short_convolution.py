"""ShortConvolution: causal, equal to `nn.Conv1d`, continued through its cache, packed and masked.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/test_short_convolution.py``.
"""

import sys
from pathlib import Path

try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "libs"))
SUPPORT = str(Path(__file__).resolve().parents[1] / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import goldens  # noqa: E402
from conv_loop import assert_same_gradients, gradients, leaves, loop, loop_packed  # noqa: E402
from myfla.modules.convolution import ShortConvolution, causal_conv1d  # noqa: E402
from myfla.testing import assert_close, cases, run_as_script  # noqa: E402

GOLDENS = {name: case for name, case in goldens.load("modules").items() if case.params["module"] == "ShortConvolution"}
CUTS = [
    [0, 1, 3, 20, 60], [0, 0, 5, 5, 6, 7, 7, 11, 11], [0, 2, 4], [0, 1, 2, 3], [0, 9], [0, 0], [0, 0, 0], [0, 3, 4, 40],
]


# --- equality with other implementations


@cases(W=[1, 2, 3, 4, 7], T=[1, 2, 5, 33], bias=[False, True], activation=[None, "silu", "swish"])
def test_equals_conv1d_with_all_gradients(W, T, bias, activation):
    conv = ShortConvolution(6, W, bias=bias, activation=activation, dtype=torch.float64)
    peer = torch.nn.Conv1d(6, 6, W, padding=W - 1, groups=6, bias=bias, dtype=torch.float64)
    peer.load_state_dict(conv.state_dict())
    x, do = torch.randn(3, T, 6, dtype=torch.float64, requires_grad=True), torch.randn(3, T, 6, dtype=torch.float64)
    z = peer(x.transpose(1, 2))[..., :T].transpose(1, 2)
    want = F.silu(z) if activation else z
    got, cache = conv(x)
    assert cache is None
    assert_close(got, want, rms=1e-14)
    assert_same_gradients(
        gradients([got], [do], [x, *conv.parameters()]), gradients([want], [do], [x, *peer.parameters()]), rms=1e-13)


@cases(case=list(GOLDENS))
def test_official_values_caches_and_gradients(case):
    case = GOLDENS[case]
    params, inputs, want = case.params, case.group("inputs"), case.group("out")
    conv = ShortConvolution(
        params["hidden_size"], params["kernel_size"], bias=params["bias"], activation=params["activation"])
    conv.load_state_dict(case.group("params"))
    data, x = inputs["x"], inputs["x"].clone().requires_grad_()
    y, cache = conv(x, residual=inputs.get("residual"), output_final_state=True)
    (y * inputs["do"]).sum().backward()
    got = {"y": y, "cache": cache, "dx": x.grad, **{f"d{name}": p.grad for name, p in conv.named_parameters()}}
    with torch.no_grad():
        got["y_head"], got["cache_head"] = conv(data[:, :33], output_final_state=True)
        steps, cache = [], got["cache_head"]
        for t in range(33, 37):
            y, cache = conv(data[:, t : t + 1], cache=cache, output_final_state=True)
            steps.append(y)
        got["y_steps"], got["cache_steps"] = torch.cat(steps, 1), cache
        got["y_tail"], got["cache_tail"] = conv(data[:, 33:], cache=got["cache_head"], output_final_state=True)
        got["y_varlen"], got["cache_varlen"] = conv(
            data[:1], cu_seqlens=torch.tensor(params["cu"]), output_final_state=True)
    assert set(got) == set(want)
    for name in want:
        assert_close(got[name], want[name], rms=1e-5, name=f"{case} {name}")


@cases(T=[0, 1, 2, 3, 4, 9], state=[False, True], extra=[False, True], activation=[None, "silu"])
def test_values_states_and_gradients_equal_the_token_loop(T, state, extra, activation):
    D, W, B = 5, 4, 3
    x, w, b, r, s = leaves((B, T, D), (D, W), (D,) if extra else None, (B, T, D) if extra else None,
                           (B, D, W) if state else None)
    y, final = causal_conv1d(x, w, b, r, s, True, activation)
    rows = [loop(x[i], w, b, None if r is None else r[i], None if s is None else s[i], activation) for i in range(B)]
    want = [torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])]
    weights = [torch.randn_like(t) for t in want]
    assert_close(y, want[0], rms=1e-14)
    assert_close(final, want[1], rms=1e-15)
    assert_same_gradients(
        gradients([y, final], weights, [x, w, b, r, s]), gradients(want, weights, [x, w, b, r, s]), rms=1e-13)


@cases(cut=CUTS, W=[1, 2, 4, 6], state=[False, True], activation=[None, "silu"])
def test_packed_equals_sequences_one_by_one(cut, W, state, activation):
    D, T, N = 3, cut[-1], len(cut) - 1
    x, w, b, r, s = leaves((1, T, D), (D, W), (D,), (1, T, D), (N, D, W) if state else None)
    y, final = causal_conv1d(x, w, b, r, s, True, activation, cu_seqlens=torch.tensor(cut, dtype=torch.int32))
    want_y, want_final = loop_packed(x[0], cut, w, b, r[0], s, activation)
    weights = [torch.randn_like(y), torch.randn_like(final)]
    assert_close(y[0], want_y, rms=1e-14)
    assert_close(final, want_final, rms=1e-15)
    assert_same_gradients(
        gradients([y, final], weights, [x, w, b, r, s]),
        gradients([want_y.unsqueeze(0), want_final], weights, [x, w, b, r, s]), rms=1e-13)


@cases(dtype=[torch.float32, torch.bfloat16, torch.float16], packed=[False, True])
def test_low_precision_is_float32_inside_and_rounded_once(dtype, packed):
    D, W, cut = 16, 4, [0, 7, 8, 40]
    shapes = [(1, 40, D), (D, W), (D,), (1, 40, D), (3 if packed else 1, D, W)]
    tensors = [t.detach().to(dtype).requires_grad_() for t in leaves(*shapes)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    do = torch.randn(1, 40, D).to(dtype)
    y, final = causal_conv1d(
        *tensors[:4], tensors[4], True, "silu", cu_seqlens=torch.tensor(cut) if packed else None)
    want, want_final = loop_packed(wide[0][0], cut if packed else [0, 40], *wide[1:3], wide[3][0], wide[4], "silu")
    bound = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert y.dtype == final.dtype == dtype
    assert torch.equal(final.double(), want_final)
    assert_close(y[0], want, rms=bound)
    got = gradients([y.double()], [do.double()], tensors)
    assert all(g.dtype == dtype for g in got)
    assert_same_gradients(got, gradients([want.unsqueeze(0)], [do.double()], wide), rms=bound)


# --- derivatives


@cases(cut=[None, [0, 0, 2, 3]])
def test_gradcheck_with_states(cut):
    N = 1 if cut is None else len(cut) - 1
    tensors = leaves((1, 3, 2), (2, 4), (2,), (1, 3, 2), (N, 2, 4))
    offsets = None if cut is None else torch.tensor(cut)

    def call(x, w, b, r, s):
        return causal_conv1d(x, w, b, r, s, True, "silu", cu_seqlens=offsets)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_only_the_asked_gradients_are_computed():
    tensors = leaves((2, 5, 3), (3, 4), (3,), (2, 5, 3), (2, 3, 4))
    whole = gradients([causal_conv1d(*tensors, activation="silu")[0]], [torch.ones(2, 5, 3)], tensors)
    for i in range(5):
        alone = [t if i == j else t.detach() for j, t in enumerate(tensors)]
        got = gradients([causal_conv1d(*alone, activation="silu")[0]], [torch.ones(2, 5, 3)], [tensors[i]])
        assert torch.equal(got[0], whole[i])


@cases(cut=[None, [0, 2, 2, 7], [0, 1, 7]], activation=[None, "silu"])
def test_incoming_gradient_is_not_written(cut, activation):
    x, weight, do = torch.randn(1, 7, 4, requires_grad=True), torch.randn(4, 3), torch.randn(1, 7, 4)
    before = do.clone()
    y, _ = causal_conv1d(x, weight, activation=activation, cu_seqlens=None if cut is None else torch.tensor(cut))
    y.backward(do, retain_graph=True)
    first = x.grad.clone()
    y.backward(do)
    assert torch.equal(do, before) and torch.equal(x.grad, 2 * first)


def test_one_token_under_autograd_trains_and_keeps_the_cache():
    conv = ShortConvolution(4, 3, dtype=torch.float64)
    x, cache = leaves((2, 1, 4), (2, 4, 3))
    before = cache.detach().clone()
    y, new = conv(x, cache=cache, output_final_state=True)
    want, want_new = loop_packed(x[:, 0], [0, 1, 2], conv.weight.squeeze(1), state=cache, activation="silu")
    weights = [torch.randn_like(y), torch.randn_like(new)]
    assert torch.equal(cache, before)
    assert_same_gradients(
        gradients([y, new], weights, [x, cache, conv.weight]),
        gradients([want.unsqueeze(1), want_new], weights, [x, cache, conv.weight]), rms=1e-14)


def test_gradient_reaches_the_oldest_slot_of_the_final_state():
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    _, final = causal_conv1d(x, torch.randn(2, 4, dtype=torch.float64), output_final_state=True)
    final[:, :, 0].sum().backward()
    assert x.grad[0, :, 0].tolist() == [0, 0, 1, 0, 0, 0]


# --- causality, splits, isolation: bit for bit where D fills whole vector registers, as torch rounds the rest apart


def test_first_outputs_see_zeros_before_them():
    weight = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    y, _ = causal_conv1d(torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]]), weight)
    assert y[0, :, 0].tolist() == [1000, 2100, 3210, 4321, 5432]


@cases(W=[1, 2, 4])
def test_future_changes_nothing_before_it(W):
    conv = ShortConvolution(3, W)
    x = torch.randn(2, 12, 3)
    other = x.clone()
    other[:, 7:] = torch.randn(2, 5, 3)
    a, b = conv(x)[0], conv(other)[0]
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.equal(a[:, 7], b[:, 7])


@cases(pieces=[[12], [5, 7], [1] * 12, [0, 1, 2, 0, 3, 6], [11, 1], [2, 10, 0]], W=[1, 2, 4, 9], grad=[False, True])
def test_any_split_equals_the_whole_bit_for_bit(pieces, W, grad):
    conv = ShortConvolution(32, W, bias=True)
    x = torch.randn(3, 12, 32)
    with torch.set_grad_enabled(grad):
        whole, want = conv(x, output_final_state=True)
        ys, cache = [], None
        for piece in x.split(pieces, 1):
            y, cache = conv(piece, cache=cache, output_final_state=True)
            ys.append(y)
    assert torch.equal(torch.cat(ys, 1), whole)
    assert torch.equal(cache, want)


def test_gradients_through_a_split_equal_the_whole():
    conv = ShortConvolution(4, 4, bias=True, dtype=torch.float64)
    x, do = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 9, 4, dtype=torch.float64)
    want = gradients([conv(x)[0]], [do], [x, *conv.parameters()])
    ys, cache = [], None
    for piece in x.split([2, 1, 0, 6], 1):
        y, cache = conv(piece, cache=cache, output_final_state=True)
        ys.append(y)
    assert_same_gradients(gradients([torch.cat(ys, 1)], [do], [x, *conv.parameters()]), want, rms=1e-14)


@cases(cut=[[0, 3, 3, 4, 12], [0, 4, 8, 12], [0, 12]])
def test_packed_is_bit_equal_to_one_by_one(cut):
    conv = ShortConvolution(32, 4, bias=True)
    x, caches = torch.randn(1, 12, 32), torch.randn(len(cut) - 1, 32, 4)
    y, final = conv(x, cache=caches, output_final_state=True, cu_seqlens=torch.tensor(cut))
    for n, (a, b) in enumerate(zip(cut[:-1], cut[1:])):
        own, own_final = conv(x[:, a:b], cache=caches[n : n + 1], output_final_state=True)
        assert torch.equal(y[:, a:b], own) and torch.equal(final[n : n + 1], own_final)


@cases(bad=[float("nan"), float("inf")], cut=[[0, 4, 5, 9], [0, 3, 6, 9]])
def test_packed_sequences_do_not_leak_into_each_other(bad, cut):
    conv = ShortConvolution(3, 4, activation="silu")
    x = torch.randn(1, 9, 3)
    x[:, cut[1] - 1] = bad
    x.requires_grad_()
    y, final = conv(x, output_final_state=True, cu_seqlens=torch.tensor(cut))
    y[:, cut[1] :].sum().backward()
    assert torch.isfinite(y[:, cut[1] :]).all() and torch.isfinite(final[1:]).all()
    assert torch.isfinite(x.grad[:, cut[1] :]).all() and not x.grad[:, : cut[1]].nan_to_num(0).any()


def test_permuting_the_batch_permutes_the_result():
    conv, x, order = ShortConvolution(32, 4), torch.randn(4, 6, 32), torch.tensor([2, 0, 3, 1])
    assert torch.equal(conv(x[order])[0], conv(x)[0][order])


# --- the cache


@cases(T=[0, 1, 2, 3, 4, 5, 9])
def test_cache_holds_the_last_inputs_newest_last(T):
    conv, x = ShortConvolution(2, 4), torch.randn(3, T, 2)
    cache = conv(x, output_final_state=True)[1]
    padded = torch.cat([torch.zeros(3, 4, 2), x], 1)
    assert torch.equal(cache, padded[:, -4:].transpose(1, 2))


@cases(T=[0, 1, 3, 8], grad=[False, True], wanted=[False, True])
def test_passed_cache_is_neither_written_nor_returned(T, grad, wanted):
    conv, x, cache = ShortConvolution(2, 4), torch.randn(3, T, 2), torch.randn(3, 2, 4)
    before = cache.clone()
    with torch.set_grad_enabled(grad):
        _, new = conv(x, cache=cache, output_final_state=wanted)
    assert torch.equal(cache, before)
    if wanted:
        assert new.data_ptr() != cache.data_ptr() and new.data_ptr() != x.data_ptr()
    else:
        assert new is None


@cases(packed=[False, True])
def test_one_step_without_autograd_equals_prefill(packed):
    conv = ShortConvolution(32, 3, bias=True)
    x, cache, r = torch.randn(5, 1, 32), torch.randn(5, 32, 3), torch.randn(5, 1, 32)
    want, want_cache = conv(x, residual=r, cache=cache, output_final_state=True)
    with torch.no_grad():
        if packed:
            offsets = torch.arange(6, dtype=torch.int32)
            y, new = conv(x.transpose(0, 1), r.transpose(0, 1), None, cache, True, offsets)
            y = y.transpose(0, 1)
        else:
            y, new = conv(x, r, None, cache, True)
    assert torch.equal(y, want) and torch.equal(new, want_cache)


def test_one_step_keeps_the_number_format_of_the_cache():
    conv = ShortConvolution(4, 3).bfloat16()
    x = torch.randn(2, 1, 4).bfloat16()
    with torch.no_grad():
        y, cache = conv(x, cache=torch.randn(2, 4, 3), output_final_state=True)
    assert y.dtype == torch.bfloat16 and cache.dtype == torch.float32


@cases(lengths=[[2, 0], [0, 2], [1, 0, 2], [3, 0, 0]])
def test_as_many_tokens_as_sequences_are_not_one_each(lengths):
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    conv, x = ShortConvolution(2, 3), torch.randn(1, int(offsets[-1]), 2)
    cache = torch.randn(len(lengths), 2, 3)
    with torch.no_grad():
        y, new = conv(x, cache=cache, output_final_state=True, cu_seqlens=offsets)
        want, want_new = loop_packed(x[0], offsets.tolist(), conv.weight.squeeze(1), state=cache, activation="silu")
    assert_close(y[0], want, rms=1e-6)
    assert_close(new, want_new, rms=1e-7)


# --- masks, layouts, sizes


@cases(value=[0.0, 7.0, float("nan"), float("inf")], kind=[torch.bool, torch.int64, torch.float32])
def test_masked_tokens_read_as_zero_whatever_they_hold(value, kind):
    conv = ShortConvolution(3, 4, bias=True)
    x, mask = torch.randn(2, 7, 3), torch.tensor([[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    want, want_cache = conv(x * mask.unsqueeze(-1), output_final_state=True)
    x[mask == 0] = value
    x.requires_grad_()
    before = x.detach().clone()
    y, cache = conv(x, mask=mask.to(kind), output_final_state=True)
    (y.sum() + cache.sum()).backward()
    assert torch.equal(y, want) and torch.equal(cache, want_cache)
    assert torch.isfinite(conv.weight.grad).all() and torch.isfinite(x.grad).all() and not x.grad[mask == 0].any()
    assert torch.equal(x.detach().nan_to_num(9), before.nan_to_num(9))


def test_mask_and_offsets_edited_in_place_are_obeyed():
    conv, x = ShortConvolution(2, 3), torch.randn(1, 6, 2)
    mask, offsets = torch.ones(1, 6), torch.tensor([0, 2, 6])
    conv(x, mask=mask)
    mask[0, 1] = 0
    assert torch.equal(conv(x, mask=mask)[0], conv(x, mask=mask.clone())[0])
    conv(x, cu_seqlens=offsets)
    offsets[1] = 5
    assert torch.equal(conv(x, cu_seqlens=offsets)[0], conv(x, cu_seqlens=torch.tensor([0, 5, 6]))[0])


if __name__ == "__main__":
    run_as_script(globals())

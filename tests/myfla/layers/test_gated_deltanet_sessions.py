"""Sessions, threads, forks and continued calls of the GatedDeltaNet layer.

Runs under pytest and as a script: ``PYTHONPATH=src python3.8 tests/myfla/layers/test_gated_deltanet_sessions.py``.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout: PYTHONPATH=src does not cover libs
    sys.path.insert(0, str(ROOT / "libs"))
sys.path.insert(0, str(ROOT / "tests" / "support"))

from concurrent.futures import ThreadPoolExecutor  # noqa: E402

import torch  # noqa: E402

import layer_truth  # noqa: E402
from gdn_layer import SHAPES, build, inputs, run, tensors  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import assert_close, cases, run_as_script  # noqa: E402


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


def test_a_state_seeded_by_hand_starts_the_recurrence():
    layer = build().eval()
    cache, state = Cache(), torch.randn(2, 2, 4, 8, dtype=torch.float64)
    cache.update(recurrent_state=state, layer_idx=0, offset=0)
    x = inputs(2, 5)
    y = run(layer, x, cache)
    parameters = layer_truth.parameters_of(layer)
    want = torch.stack([layer_truth.gated_deltanet(layer, parameters, x[i], state[i])[0] for i in range(2)])
    assert_close(y, want, rms=1e-12)


def test_gradients_flow_through_a_cache():
    layer = build()
    x = inputs(2, 12).requires_grad_()
    cache = Cache()
    pieces = [run(layer, x[:, i:j], cache, grad=True) for i, j in ((0, 5), (5, 6), (6, 12))]
    got = torch.autograd.grad(torch.cat(pieces, 1).square().sum(), [x, *layer.parameters()])
    want = torch.autograd.grad(run(layer, x, grad=True).square().sum(), [x, *layer.parameters()])
    for a, b in zip(got, want):
        assert_close(a, b, rms=1e-11)


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


def test_a_hook_on_a_convolution_is_called():
    layer, seen = build(), []
    layer.k_conv1d.register_forward_hook(lambda *args: seen.append(1))
    run(layer, inputs(1, 4))
    assert seen == [1]


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


@cases(use_gate=[True, False], use_short_conv=[True, False], train=[True, False])
def test_every_parameter_gets_a_gradient(use_gate, use_short_conv, train):
    layer = build(torch.float32, use_gate=use_gate, use_short_conv=use_short_conv, conv_bias=True).train(train)
    layer(inputs(2, 5, torch.float32))[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


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


def test_offsets_edited_in_place_are_obeyed():
    layer, x = build(), inputs(1, 8)
    cu = torch.tensor([0, 3, 8])
    first = run(layer, x, cu_seqlens=cu)
    cu.copy_(torch.tensor([0, 5, 8]))
    assert torch.equal(run(layer, x, cu_seqlens=cu), run(layer, x, cu_seqlens=torch.tensor([0, 5, 8])))
    assert not torch.equal(run(layer, x, cu_seqlens=cu), first)


if __name__ == "__main__":
    run_as_script(globals())
